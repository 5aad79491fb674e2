//! The rings for AIO in a process's memory (`io_setup(2)`).
//!
//! CRIU makes a new ring. For one that was used, it repeats as many writes as the ring has counted,
//! to `/dev/null` in the container, from inside the process. There, the container can have a fifo,
//! at which CRIU waits without end, or a link to a file of a volume, to which CRIU writes as root
//! of the host. Before CRIU has made the mounts, `rt` cannot know what is there: the content of
//! `/dev` is an archive in the images, and a process can have another root. So such a ring is
//! refused: by `checkpoint` too, before it ends anything.
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;

use anyhow::{Result, ensure};

use crate::container::checkpoint::{memory_images, memory_pages};

/// Fails if a ring of a process was used. `image` is that of the process's memory.
pub(in crate::container) fn refuse_used(
    images: BorrowedFd<'_>,
    pid: u32,
    image: &[u8],
) -> Result<()> {
    let rings = memory_images::rings(image)?;
    memory_pages::each_of(images, pid, rings, &mut |address, page| {
        ensure!(
            is_unused(page),
            "the ring for AIO at {address:#x} was used (`io_submit(2)`), and `criu` would write to the container's `/dev/null` for it"
        );
        Ok(())
    })
}

/// Whether the kernel has not counted anything yet, by the ring's first page.
fn is_unused(page: &[u8]) -> bool {
    // `struct aio_ring`: `id`, `nr`, `head` and `tail`, with 32 bits each.
    page.get(8..16).is_some_and(|counted| counted.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_counts() {
        let ring = |counted: [u32; 2]| -> Vec<u8> {
            [&[1, 63], &counted[..], &[0xa10a_10a1]]
                .concat()
                .iter()
                .flat_map(|it| it.to_le_bytes())
                .collect()
        };
        assert!(is_unused(&ring([0, 0])));
        for counted in [[0, 1], [1, 0], [2, 2], [0, 1 << 31]] {
            assert!(!is_unused(&ring(counted)), "{counted:?}");
        }
        assert!(!is_unused(&ring([0, 0])[..12]));
    }
}
