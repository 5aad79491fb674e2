//! System call filters.

use serde_json::{Value, json};

use crate::harness::{Outcome, Test, ensure};

super::tests! { "seccomp": a_call_is_refused, a_call_is_refused_with_its_errno, works_without_no_new_privileges, a_filter_is_loaded, an_unknown_call_is_no_error }

fn deny(action: Value) -> Value {
    let mut rule = json!({ "names": ["mkdir", "mkdirat", "no_such_system_call"] });
    if let (Some(rule), Some(action)) = (rule.as_object_mut(), action.as_object()) {
        rule.extend(action.clone());
    }
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule] })
}

fn says(test: &Test, filter: Value, no_new_privileges: bool, words: &str) -> Outcome {
    let bundle = test.sh("mkdir /tmp/new || exit 0; echo made; exit 1")?.edit(|config| {
        config["linux"]["seccomp"] = filter;
        config["process"]["noNewPrivileges"] = json!(no_new_privileges);
    });
    let output = bundle.run()?.success()?;
    ensure(output.stderr.contains(words), output.stderr)
}

fn a_call_is_refused(test: &Test) -> Outcome {
    says(test, deny(json!({ "action": "SCMP_ACT_ERRNO" })), true, "Operation not permitted")
}

fn a_call_is_refused_with_its_errno(test: &Test) -> Outcome {
    // 28 is ENOSPC.
    says(
        test,
        deny(json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 28 })),
        true,
        "No space left on device",
    )
}

fn works_without_no_new_privileges(test: &Test) -> Outcome {
    says(test, deny(json!({ "action": "SCMP_ACT_ERRNO" })), false, "Operation not permitted")
}

fn a_filter_is_loaded(test: &Test) -> Outcome {
    let bundle = test.linux(&["/bin/grep", "^Seccomp:", "/proc/self/status"])?;
    bundle
        .edit(|config| config["linux"]["seccomp"] = deny(json!({ "action": "SCMP_ACT_ERRNO" })))
        .run()?
        .success()?
        .stdout("Seccomp:\t2\n")?;
    test.linux(&["/bin/grep", "^Seccomp:", "/proc/self/status"])?
        .run()?
        .success()?
        .stdout("Seccomp:\t0\n")
        .map(drop)
}

fn an_unknown_call_is_no_error(test: &Test) -> Outcome {
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["no_such_system_call"], "action": "SCMP_ACT_ERRNO" }] });
    test.sh("echo ran")?
        .edit(|config| config["linux"]["seccomp"] = filter)
        .run()?
        .success()?
        .stdout("ran\n")
        .map(drop)
}
