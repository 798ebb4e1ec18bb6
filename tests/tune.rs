//! `scripts/tune.sh` on a made-up host: what it changes, what it leaves alone, and that it restores
//! every byte, also when it was run twice, with two profiles, or killed half-way.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A `/proc` with the keys of both profiles but one, and the values of a plain host, written as the
/// kernel does: numbers apart by tabs.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { folder: tempfile::tempdir().expect("a folder to write to") };
        host.set_memory(24 << 20);
        for (key, value) in FOUND {
            let path = host.path(key);
            fs::create_dir_all(path.parent().expect("below the root")).expect(MADE_UP);
            fs::write(path, format!("{value}\n")).expect(MADE_UP);
        }
        host
    }

    fn set_memory(&self, kibibytes: u64) {
        let proc = self.folder.path().join("proc");
        fs::create_dir_all(&proc).expect(MADE_UP);
        fs::write(proc.join("meminfo"), format!("MemTotal:       {kibibytes} kB\n"))
            .expect(MADE_UP);
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.path().join("proc/sys").join(key.replace('.', "/"))
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("run/fanwire/tune.conf")
    }

    fn value(&self, key: &str) -> String {
        fs::read_to_string(self.path(key)).expect(MADE_UP)
    }

    /// Every key with every byte of its value.
    fn values(&self) -> BTreeMap<&'static str, String> {
        FOUND.iter().map(|(key, _)| (*key, self.value(key))).collect()
    }

    fn command(&self, arguments: &str) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/tune.sh");
        let mut command = Command::new(script);
        command
            .args(arguments.split(' '))
            .env("FANWIRE_TUNE_PROC", self.folder.path().join("proc"))
            .env("FANWIRE_TUNE_STATE", self.state())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect(RUNS)
    }

    /// Runs it and returns what it printed.
    #[track_caller]
    fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8(output.stdout).expect("it prints text")
    }
}

const MADE_UP: &str = "the made-up host is ours to write";
const RUNS: &str = "the script runs";

const FOUND: &[(&str, &str)] = &[
    ("fs.file-max", "9223372036854775807"),
    ("net.core.somaxconn", "4096"),
    ("net.core.netdev_max_backlog", "1000"),
    ("net.ipv4.tcp_mem", "287898\t383867\t1572864"),
    ("net.ipv4.tcp_rmem", "4096\t131072\t33554432"),
    ("net.ipv4.tcp_wmem", "4096\t16384\t4194304"),
    ("net.ipv4.tcp_notsent_lowat", "4294967295"),
    ("net.ipv4.tcp_max_orphans", "131072"),
    ("net.netfilter.nf_conntrack_max", "262144"),
    ("net.ipv4.tcp_slow_start_after_idle", "1"),
    ("net.ipv4.tcp_autocorking", "1"),
    ("vm.swappiness", "60"),
    ("kernel.numa_balancing", "0"),
];

/// In the profile idle-million, and not on this host.
const MISSING: &str = "net.netfilter.nf_conntrack_buckets";

#[test]
fn each_number_becomes_what_is_wanted_unless_it_is_better_already() {
    let host = Host::new();
    let printed = host.succeed("apply --yes");
    assert_eq!(host.value("net.core.somaxconn"), "65535\n", "at least");
    assert_eq!(host.value("fs.file-max"), "9223372036854775807\n", "more than wanted already");
    assert_eq!(host.value("net.ipv4.tcp_mem"), "786432 1048576 1572864\n", "the third is better");
    assert_eq!(host.value("net.ipv4.tcp_rmem"), "4096 131072 1048576\n", "at most");
    assert_eq!(host.value("net.ipv4.tcp_notsent_lowat"), "16384\n", "at most");
    assert_eq!(host.value("net.ipv4.tcp_autocorking"), "1\n", "not in this profile");
    let missing = printed.lines().find(|line| line.starts_with(MISSING)).unwrap();
    assert!(missing.contains("skipped: not on this kernel"), "{missing}");
    assert!(!host.path(MISSING).exists());

    host.succeed("apply --yes --profile low-latency");
    assert_eq!(host.value("net.ipv4.tcp_autocorking"), "0\n", "exactly");
}

#[test]
fn revert_restores_every_byte_however_often_it_was_applied() {
    for profiles in [
        &["idle-million"][..],
        &["idle-million", "idle-million"],
        &["idle-million", "low-latency"],
        &["low-latency", "idle-million", "low-latency", "low-latency"],
    ] {
        let host = Host::new();
        let before = host.values();
        for profile in profiles {
            host.succeed(&format!("apply --yes --profile {profile}"));
            assert_ne!(host.values(), before);
        }
        host.succeed("revert --yes");
        assert_eq!(host.values(), before, "{profiles:?}");
        assert!(!host.state().exists());

        assert!(host.succeed("revert").starts_with("nothing to revert"), "a second time");
        assert_eq!(host.values(), before);
    }
}

#[test]
fn a_second_apply_finds_nothing_to_change() {
    let host = Host::new();
    host.succeed("apply --yes");
    let applied = host.values();
    // Without an answer to give: it does not ask.
    assert!(host.succeed("apply").ends_with("nothing to change for idle-million\n"));
    assert_eq!(host.values(), applied);
}

#[test]
fn another_profile_takes_back_what_it_does_not_want() {
    let (both, one) = (Host::new(), Host::new());
    both.succeed("apply --yes --profile idle-million");
    both.succeed("apply --yes --profile low-latency");
    one.succeed("apply --yes --profile low-latency");
    assert_eq!(both.values(), one.values());
}

#[test]
fn the_host_is_changed_only_after_a_yes() {
    let host = Host::new();
    let before = host.values();
    let answered = |arguments, answer: &str| {
        let mut child = host.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    for no in ["", "\n", "n\n", "never\n"] {
        let output = answered("apply", no);
        assert_eq!(output.status.code(), Some(1), "{no:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("nothing was changed"));
        assert_eq!((host.values(), host.state().exists()), (before.clone(), false), "{no:?}");
    }
    host.succeed("status");
    assert_eq!((host.values(), host.state().exists()), (before.clone(), false), "status looks");

    assert!(answered("apply", "y\n").status.success());
    let applied = host.values();
    assert_ne!(applied, before);
    assert_eq!(answered("revert", "n\n").status.code(), Some(1));
    assert_eq!(host.values(), applied);
    assert!(answered("revert", "yes\n").status.success());
    assert_eq!(host.values(), before);
}

#[test]
fn a_key_that_cannot_be_written_is_told_and_the_rest_is_done() {
    let host = Host::new();
    // A number of the real kernel that nobody may write, and too small for the profile.
    let key = "fs.file-max";
    fs::remove_file(host.path(key)).unwrap();
    symlink("/proc/sys/kernel/ngroups_max", host.path(key)).unwrap();
    let before = host.values();

    let output = host.run("apply --yes");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("cannot write fs.file-max: "), "{complaint}");
    assert_eq!(host.value("net.ipv4.tcp_max_orphans"), "1048576\n", "it comes after the other");
    host.succeed("revert --yes");
    assert_eq!(host.values(), before);
}

#[test]
fn an_interrupted_apply_can_be_taken_back_or_finished() {
    for next in ["revert", "apply", "apply --profile low-latency"] {
        let host = Host::new();
        let before = host.values();
        let interrupted = "net.core.netdev_max_backlog";
        kill_while_writing(&host, interrupted);
        assert_eq!(host.value("net.core.somaxconn"), "65535\n", "before it in the profile");
        assert_eq!(host.value("net.ipv4.tcp_mem"), before["net.ipv4.tcp_mem"], "after it");

        host.succeed(&format!("{next} --yes"));
        if next != "revert" {
            host.succeed("revert --yes");
        }
        assert_eq!(host.values(), before, "{next}");
    }
}

/// Kills `apply` right after it has written `key`.
///
/// The key is a FIFO meanwhile: whoever opens it waits for the other side, so this test and the
/// script go hand in hand.
fn kill_while_writing(host: &Host, key: &str) {
    let path = host.path(key);
    let found = host.value(key);
    fs::remove_file(&path).expect(MADE_UP);
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
    let mut child: Child = host.command("apply --yes").spawn().expect(RUNS);

    fs::write(&path, found).expect(MADE_UP); // it reads what to save
    let written = fs::read_to_string(&path).expect(MADE_UP); // it writes
    assert_eq!(written, "16384\n");
    let check = OpenOptions::new().write(true).open(&path).expect(MADE_UP); // it reads what came of it
    child.kill().expect("it waits for the other side");
    drop(check);
    // Until its last descendant is gone, and the lock with it.
    child.wait_with_output().expect(RUNS);

    fs::remove_file(&path).expect(MADE_UP);
    fs::write(&path, written).expect(MADE_UP);
}

#[test]
fn what_is_a_share_of_memory_shrinks_on_a_small_host() {
    let host = Host::new();
    host.set_memory(4 << 20);
    fs::write(host.path("net.ipv4.tcp_mem"), "1\t2\t3\n").unwrap();
    host.succeed("apply --yes");
    let page = Command::new("getconf").arg("PAGESIZE").output().unwrap().stdout;
    let page: u64 = String::from_utf8(page).unwrap().trim().parse().unwrap();
    // A quarter of 4 GiB; the other two in the proportion of the profile.
    let last = (1 << 30) / page;
    let [first, second] = [786_432, 1_048_576].map(|pages| pages * last / 1_310_720);
    assert_eq!(host.value("net.ipv4.tcp_mem"), format!("{first} {second} {last}\n"));
}

#[test]
fn a_wrong_command_line_is_answered_with_the_usage() {
    let host = Host::new();
    for wrong in ["", "apply --profile fastest", "apply --profile", "apply --no", "undo"] {
        let output = host.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: scripts/tune.sh"));
    }
    assert!(host.succeed("apply --help").contains("usage: scripts/tune.sh"));
    assert!(!host.state().exists());
}
