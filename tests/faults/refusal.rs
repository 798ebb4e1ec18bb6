//! A host that refuses io_uring: the server does not start, and says what, why and the remedy.

use std::{io::Write, os::unix::process::CommandExt, process::Command};

use crate::{
    promises::{POLICY, Rooms},
    support::{Server, fanwire, free_port, row, run, skipped, wrapped},
};

/// Makes the kernel refuse system call number `call` to the process that `command` starts, with
/// `errno`, as a container's seccomp profile does.
#[expect(unsafe_code, reason = "std has no seccomp")]
fn refuse(command: &mut Command, call: libc::c_long, errno: i32) {
    let call = u32::try_from(call).expect("calls are small numbers");
    let refused = libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    // A classic BPF program over struct seccomp_data, which begins with the call's number.
    let program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refused),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || {
        let mut program = program;
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        let (yes, none): (libc::c_ulong, libc::c_ulong) = (1, 0);
        let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
        // SAFETY: this prctl takes numbers alone and touches no memory of ours.
        let unprivileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, yes, none, none, none) };
        // SAFETY: prctl(2) reads the program, which outlives the call.
        let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter) };
        if (unprivileged, filtered) == (0, 0) {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: between fork and exec the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(install) };
}

fn serve() -> Command {
    let (listen, admin) = (free_port(), free_port());
    fanwire(&[
        "serve",
        "--listen",
        &format!("127.0.0.1:{listen}"),
        "--admin",
        &format!("127.0.0.1:{admin}"),
    ])
}

/// Runs `command` and finds all of `words` in the one line that it leaves.
fn check(command: Command, words: &[&str]) {
    let finished = run(command);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let lines: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "one line: {finished:?}");
    let missing: Vec<_> = words.iter().filter(|word| !lines[0].contains(**word)).collect();
    assert!(missing.is_empty(), "{missing:?} are not in: {}", lines[0]);
}

#[test]
fn io_uring_that_a_sandbox_refuses_stops_the_start_with_the_remedy() {
    let calls = [
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("io_uring_enter", libc::SYS_io_uring_enter),
    ];
    for (name, call) in calls {
        for (errno, said) in [(libc::EPERM, "forbidden (EPERM)"), (libc::ENOSYS, "ENOSYS")] {
            row(&format!("{name}: {said}"), || {
                let mut command = serve();
                refuse(&mut command, call, errno);
                let remedy = "allow io_uring_setup, io_uring_enter";
                check(command, &["io_uring", said, "seccomp", remedy]);
            });
        }
    }
}

/// What the server does not need may be refused.
#[test]
fn io_uring_register_may_be_refused() {
    let (listen, admin) = (free_port(), free_port());
    let [listen, admin] = [listen, admin].map(|port| ([127, 0, 0, 1], port).into());
    let flags = ["serve", POLICY, "--shards", "2", "--listen", &format!("{listen}")];
    let mut command = fanwire(&flags);
    command.args(["--admin", &format!("{admin}")]);
    refuse(&mut command, libc::SYS_io_uring_register, libc::EPERM);
    let server = Server::spawn(command, listen, Some(admin));
    Rooms::near("room", server.address()).talk(16, 200);
}

#[test]
fn io_uring_that_the_sysctl_forbids_stops_the_start_with_the_remedy() {
    // In a mount namespace of its own the process sees a file of ours in the sysctl's place.
    let mut fake = tempfile::NamedTempFile::new().expect("a file");
    writeln!(fake, "2").expect("a line");
    let script = format!(
        "mount --bind {} /proc/sys/kernel/io_uring_disabled && exec \"$@\"",
        fake.path().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let trial = run(wrapped(&wrapper, Command::new("true")));
    if trial.code != Some(0) {
        return skipped(&format!("no mounts to test with: {}", trial.stderr.trim()));
    }
    let mut command = wrapped(&wrapper, serve());
    refuse(&mut command, libc::SYS_io_uring_setup, libc::EPERM);
    let words = ["disabled for all processes", "kernel.io_uring_disabled = 2", "sysctl -w"];
    check(command, &words);
}
