//! Checkpoints: CRIU writes a container to files, and makes it again from these files. The
//! configuration decides what a restored container may have.
#![forbid(unsafe_code)]

mod aio_rings;
mod allowed_mounts;
mod cgroup_image;
mod confinement;
mod cover;
pub(crate) mod criu;
mod criu_limits;
pub(crate) mod dump;
mod external_mounts;
mod file_kinds;
mod guard;
mod image_names;
mod images;
mod iptables_images;
mod memory_images;
mod memory_pages;
mod mount_images;
mod network_images;
mod open_files;
mod paths;
mod process_images;
pub(crate) mod restore;
mod restored;
mod restored_cgroups;
mod restored_limits;
mod restrictions;
mod vdso_image;
mod yards;
