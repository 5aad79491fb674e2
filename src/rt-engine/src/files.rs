//! Which files a guest may open: no file of the kernel's own, and no device that is more than a
//! file.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;

use crate::process;

/// Filesystems of the kernel's own objects, `<linux/magic.h>`: proc, sysfs, both cgroups, debugfs,
/// tracefs, securityfs, bpf, pstore, efivarfs, binfmt_misc, selinuxfs, configfs, nsfs, devpts,
/// apparmorfs, smackfs, resctrl, mqueue, pidfs, rpc_pipefs, nfsd, binder, xenfs, hypfs, dlmfs; and
/// fusectl (`fs/fuse/control.c`), functionfs, gadgetfs. This is not a list of allowed filesystems:
/// a container's volume may be on any filesystem that has a driver. On each such filesystem, a file
/// is only a file.
const KERNELS: [u32; 29] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x6165_676c,
    0xde5e_81e4,
    0x4249_4e4d,
    0xf97c_ff8c,
    0x6265_6570,
    0x6e73_6673,
    0x1cd1,
    0x5a3c_69f0,
    0x4341_5d53,
    0x0765_5821,
    0x6573_5543,
    0x1980_0202,
    0x5049_4446,
    0x6759_6969,
    0x6e66_7364,
    0x6c6f_6f70,
    0xabba_1974,
    0x012f_d00d,
    0x76a9_f425,
    0x0a64_7361,
    0xaee7_1ee7,
];

/// Devices that are as harmless as a file: null, zero, full, random, urandom.
const PLAIN: [(u32, u32); 5] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

/// Whether an open file is neither the kernel's own nor a device. Any thread may call this.
pub fn is_for_guests(file: impl AsFd) -> bool {
    let file = file.as_fd();
    let Some(stat) = process::stat(file) else { return false };
    if matches!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR | libc::S_IFBLK) {
        let number = (libc::major(stat.st_rdev), libc::minor(stat.st_rdev));
        return stat.st_mode & libc::S_IFMT == libc::S_IFCHR && PLAIN.contains(&number);
    }
    process::filesystem(file).is_some_and(|kind| !KERNELS.contains(&kind))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    #[test]
    fn the_kernels_files_and_devices_are_not_for_guests() {
        let is_for_guests = |path| File::open(path).map(|file| super::is_for_guests(&file)).ok();
        for (path, expected) in [
            ("/", true),
            ("/dev/null", true),
            ("/dev/urandom", true),
            ("/proc", false),
            ("/proc/self/mem", false),
            ("/sys", false),
        ] {
            // A machine may lack one.
            assert!(is_for_guests(path).is_none_or(|it| it == expected), "{path}");
        }
    }
}
