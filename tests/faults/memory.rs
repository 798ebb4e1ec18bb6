//! A host with little memory: a control group whose limit is what the settings add up to, and peers
//! that want ten times as much. Past the limit the kernel would kill the server.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use crate::{
    promises::{Rooms, endure},
    serve_through,
    support::{Client, PATIENCE, Server, Wire, frame, skipped, wait_until},
};

const MIB: u64 = 1 << 20;

/// A control group below our own with a limit of memory; removed when dropped.
struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    /// Makes one in which `bytes` may be used; says why it cannot.
    fn with_memory(bytes: u64) -> Result<ControlGroup, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (parent, limit) = parent()?;
        let path = parent.join(format!("fanwire-test-{}-{number}", std::process::id()));
        let failed = |what: &Path, error| format!("{}: {error}", what.display());
        fs::create_dir(&path).map_err(|error| failed(&path, error))?;
        // Removed from here on, whatever comes.
        let group = ControlGroup { path };
        let limit = group.path.join(limit);
        fs::write(&limit, bytes.to_string()).map_err(|error| failed(&limit, error))?;
        Ok(group)
    }

    /// The command that runs the command behind it in here.
    fn wrapper(&self) -> [String; 4] {
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        ["sh".into(), "-c".into(), join, "sh".into()]
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The last process of it may still be on its way out.
        let deadline = std::time::Instant::now() + PATIENCE;
        while fs::remove_dir(&self.path).is_err() && std::time::Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where a group with a limit of memory can be made, and the name of the limit: below our own group
/// in version 1; in version 2 below the nearest one that lets its children have limits.
fn parent() -> Result<(PathBuf, &'static str), String> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let entries = own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let mut version_2 = None;
    for (controllers, path) in entries {
        let path = path.trim_start_matches('/');
        if controllers.split(',').any(|controller| controller == "memory") {
            return Ok((Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
        }
        if controllers.is_empty() {
            version_2 = Some(Path::new("/sys/fs/cgroup").join(path));
        }
    }
    let has_limits = |group: &&Path| {
        fs::read_to_string(group.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|it| it == "memory"))
    };
    let own = version_2.ok_or("no control groups")?;
    let parent = own.ancestors().find(has_limits).ok_or("none with limits of memory")?;
    Ok((parent.to_owned(), "memory.max"))
}

#[test]
fn peers_that_want_more_memory_than_there_is_get_what_the_settings_allow() {
    const LIMIT: u64 = 128 * MIB;
    if cfg!(asan) {
        return skipped("AddressSanitizer takes more memory than there is");
    }
    let group = match ControlGroup::with_memory(LIMIT) {
        Ok(group) => group,
        Err(why) => return skipped(&format!("no control group to test with: {why}")),
    };
    // 64 MiB of incomplete messages, and 2 MiB of each room's log where somebody is slow; the rest
    // is the server itself, and what the kernel keeps for its connections.
    let flags = [
        "--shards=1",
        "--partial-bytes-max=64MiB",
        "--ws-message-bytes-max=256KiB",
        "--raw-message-bytes-max=256KiB",
        "--echo",
        "--echo-message-bytes-max=8MiB",
        "--high-water-mark=2MiB",
    ];
    let wrapper = group.wrapper();
    let mut server = serve_through(&wrapper.each_ref().map(String::as_str), &flags);
    let mut witness = Rooms::near("witness", server.address());
    endure(&server, 2, |_| {
        thread::scope(|scope| {
            scope.spawn(|| {
                begin_messages(&server);
                read_nothing(&server);
            });
            witness.talk(200, 200);
        });
    });
    assert!(server.is_running());
    drop(server);
    let is_empty =
        || fs::read_to_string(group.path.join("cgroup.procs")).is_ok_and(|it| it.is_empty());
    wait_until("nobody is left in the group", is_empty);
}

/// Begins 64 messages of 8 MiB, and finishes none. At the end there is memory for others again.
fn begin_messages(server: &Server) {
    let before = server.descriptors();
    let begun = &frame(0x82, &vec![1; 8 << 20])[..8 << 20];
    let mut hogs: Vec<Wire> = (0..64).map(|_| Wire::open(server.address(), "/echo")).collect();
    for hog in &mut hogs {
        // It may be refused, and hung up on, before the end.
        let _ = hog.try_send(begun);
    }
    wait_until("some are refused", || hogs.iter_mut().any(Wire::has_input));
    drop(hogs);
    server.wait_descriptors(before, "those who had begun messages");
}

/// Joins rooms that get 32 MiB each, and reads nothing of it.
fn read_nothing(server: &Server) {
    let address = server.address();
    let payload = vec![7; 128 << 10];
    let mut slow = Vec::new();
    for room in 0..4 {
        let path = format!("/raw/{room}");
        slow.extend((0..4).map(|_| Wire::open(address, &path)));
        let mut publisher = Client::connect(address, &path);
        for _ in 0..32 * MIB / payload.len() as u64 {
            publisher.send_binary(&payload);
            assert_eq!(publisher.receive().len(), payload.len());
        }
    }
}
