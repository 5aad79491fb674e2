//! The verbs: commands that make, enter, change and remove containers. The nouns, which the kernel
//! has names for, are in [`crate::linux`].
#![forbid(unsafe_code)]

mod becoming;
pub(crate) mod checkpoint;
mod create;
mod delete;
mod exec;
mod hooks;
mod init;
mod live_mounts;
mod module;
mod patience;
mod pid_file;
mod plan;
mod serve;
mod start;
mod undo;

pub(crate) use checkpoint::dump::{CheckpointOptions, checkpoint};
pub(crate) use checkpoint::restore::{RestoreOptions, Restored, restore};
pub(crate) use create::{Container, create};
pub(crate) use delete::{delete, delete_unreadable, end};
pub(crate) use exec::{ExecOptions, exec};
pub(crate) use live_mounts::{add as add_mounts, remove as remove_mounts};
pub(crate) use plan::{Options, Wait};
pub(crate) use start::{start, started, tell_of_manager};
