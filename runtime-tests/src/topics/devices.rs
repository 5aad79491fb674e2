//! `/dev`.

use serde_json::json;

use crate::harness::{Outcome, Test};

super::tests! { "devices": the_default_ones_are_there, the_links_are_there, listed_ones_are_made, a_mount_takes_the_place_of_a_default_one, another_file_in_its_place_is_refused }

fn the_default_ones_are_there(test: &Test) -> Outcome {
    let bundle = test.sh("cd /dev; stat -c '%n %t:%T %a' full null random tty urandom zero")?;
    let expected =
        "full 1:7 666\nnull 1:3 666\nrandom 1:8 666\ntty 5:0 666\nurandom 1:9 666\nzero 1:5 666\n";
    bundle.run()?.success()?.stdout(expected).map(drop)
}

fn the_links_are_there(test: &Test) -> Outcome {
    let bundle =
        test.sh("cd /dev; for link in fd stdin stdout stderr ptmx; do readlink $link; done")?;
    let links = "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    bundle.run()?.success()?.stdout(links).map(drop)
}

fn listed_ones_are_made(test: &Test) -> Outcome {
    let bundle = test.sh("stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/sub/disk /dev/fifo")?;
    let devices = json!([
        { "path": "/dev/mine", "type": "c", "major": 10, "minor": 229, "fileMode": 0o620, "uid": 7, "gid": 8 },
        { "path": "/dev/sub/disk", "type": "b", "major": 7, "minor": 1, "fileMode": 0o600 },
        { "path": "/dev/fifo", "type": "p", "fileMode": 0o644 },
    ]);
    let output = bundle.edit(|config| config["linux"]["devices"] = devices).run()?.success()?;
    let expected = "/dev/mine character special file a:e5 620 7:8\n/dev/sub/disk block special file 7:1 600 0:0\n/dev/fifo fifo 0:0 644 0:0\n";
    output.stdout(expected).map(drop)
}

/// As `-v /dev/urandom:/dev/random` has it.
fn a_mount_takes_the_place_of_a_default_one(test: &Test) -> Outcome {
    let bundle = test.sh("stat -c '%t:%T' /dev/random")?.mount(json!({
        "destination": "/dev/random", "type": "bind", "source": "/dev/urandom", "options": ["bind"]
    }));
    bundle.run()?.success()?.stdout("1:9\n").map(drop)
}

fn another_file_in_its_place_is_refused(test: &Test) -> Outcome {
    test.only_rt()?;
    let bundle = test.sh("true")?.edit(|config| {
        if let Some(mounts) = config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["destination"] == "/proc");
        }
    });
    bundle
        .file("/dev/null", "not a device")?
        .try_create(&test.id())?
        .fails_with("another file is in its place")
        .map(drop)
}
