use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;

use super::*;
use crate::config::{self, Action};
use crate::io::readings::{CgroupMemory, Reading};

/// A host with 2 CPUs, 24 GiB and RLIMIT_NOFILE 20,000 that shows these sysctls, and of those that
/// both profiles name no other.
fn host(sysctls: &[(&str, &str)]) -> Host {
    let of_profiles = [Profile::IdleMillion, Profile::LowLatency].map(profile::keys);
    let names = of_profiles.iter().flatten().map(|key| key.name);
    let mut all: BTreeMap<String, Reading> = names
        .chain(readings::ALWAYS.iter().copied())
        .map(|n| (n.into(), Reading::Missing))
        .collect();
    for (name, value) in sysctls {
        let replaced = all.insert((*name).into(), Reading::Found((*value).into()));
        assert!(replaced.is_some(), "{name} is not read");
    }
    Host {
        readings: Readings {
            sysctls: all,
            memory: Some(24 << 30),
            memory_available: Some(20 << 30),
            cgroups: vec![],
            huge_pages: Reading::Found("always [madvise] never".into()),
            governors: BTreeSet::new(),
            page_bytes: 4096,
        },
        kernel: Ok(()),
        descriptor_limit: Ok(20_000),
        cpus: Ok(vec![0, 1]),
    }
}

/// As Linux comes.
const PLAIN: &[(&str, &str)] = &[
    ("fs.file-max", "2466170"),
    ("fs.file-nr", "170\t0\t2466170"),
    ("fs.nr_open", "1048576"),
    ("kernel.osrelease", "6.18.44"),
    ("net.core.somaxconn", "4096"),
    ("net.ipv4.ip_local_port_range", "32768\t60999"),
    ("net.ipv4.tcp_mem", "287898\t383867\t575796"),
    ("net.ipv4.tcp_rmem", "4096\t131072\t6291456"),
    ("net.ipv4.tcp_slow_start_after_idle", "1"),
    ("vm.overcommit_memory", "0"),
];

fn check(host: &Host, flags: &str) -> Report {
    let args = "fanwire check".split(' ').chain(flags.split_whitespace()).map(OsString::from);
    let loaded = config::load(args, []).unwrap();
    let Action::Check(options) = loaded.action else { panic!("{:?}", loaded.action) };
    Report::new(host, &loaded.settings, options)
}

impl Report {
    fn row(&self, setting: &str) -> &Row {
        self.settings.iter().find(|row| row.setting == setting).unwrap()
    }

    fn limit(&self, name: &str) -> &Limit {
        self.limits.iter().find(|limit| limit.name == name).unwrap()
    }

    fn must(&self) -> Vec<&str> {
        let rows = self.settings.iter().filter(|row| row.must_change);
        let limits = self.limits.iter().filter(|limit| !limit.fits);
        let must: Vec<&str> =
            rows.map(|row| row.setting.as_str()).chain(limits.map(|limit| limit.name)).collect();
        assert_eq!((self.must_change, self.passes()), (must.len(), must.is_empty()));
        must
    }
}

#[test]
fn a_plain_host_passes_and_is_given_advice() {
    let report = check(&host(PLAIN), "");
    assert_eq!(report.must(), [""; 0]);
    let row = |setting| {
        let row = report.row(setting);
        (row.found.as_str(), row.wanted.as_str(), row.verdict, row.remedy.as_str())
    };
    let remedy = "sysctl -w net.core.somaxconn=65535";
    assert_eq!(row("net.core.somaxconn"), ("4096", "at least 65535", Verdict::Low, remedy));
    let remedy = "sysctl -w net.ipv4.tcp_rmem='4096 131072 1048576'";
    let wanted = "at most 4096 131072 1048576";
    assert_eq!(row("net.ipv4.tcp_rmem"), ("4096 131072 6291456", wanted, Verdict::High, remedy));
    assert_eq!(row("fs.file-max"), ("2466170", "at least 2200000", Verdict::Ok, ""));
    assert_eq!(row("CPU governor"), ("-", "performance", Verdict::Missing, ""));
    assert_eq!(row("transparent huge pages"), ("madvise", "any", Verdict::Ok, ""));
    assert_eq!(row("vm.overcommit_memory"), ("0", "0 or 1", Verdict::Ok, ""));
}

#[test]
fn every_limit_is_told_the_nearest_first() {
    let report = check(&host(PLAIN), "--connections-max 1000000");
    let limits: Vec<_> = report.limits.iter().map(|l| (l.name, l.connections)).collect();
    // Of 20,000: 64 spare, a listener, two eventfds. Of 20 GiB nine tenths, for 152 + 4,086 bytes.
    let expected = [
        ("descriptors", 2 * (20_000 - 64 - 1 - 2)),
        ("configuration", 1_000_000),
        ("open files", 2_466_170 - 170),
        ("memory", ((20_u64 << 30) - (2 << 30)) / 4_238),
    ];
    assert_eq!(limits, expected);
    let remedy = &report.limit("descriptors").remedy;
    assert!(remedy.starts_with("--shards 53 would hold 1,000,000; or "), "{remedy}");
    assert!(remedy.ends_with("at most fs.nr_open = 1048576"), "{remedy}");
}

#[test]
fn connections_that_are_asked_for_must_fit() {
    let must = |flags| check(&host(PLAIN), flags).must().join(" ");
    assert_eq!(must("--connections 38000"), "");
    assert_eq!(
        must("--connections 39000"),
        "descriptors",
        "in total yes, in each shard perhaps not"
    );
    assert_eq!(must("--connections 39000 --shards 1"), "descriptors");
    assert_eq!(must("--connections 19933 --shards 1"), "", "one shard takes them all");
    assert_eq!(
        must("--connections 1000000 --shards 51"),
        "descriptors",
        "if the deal came out even"
    );
    assert_eq!(must("--connections 1000000 --shards 53"), "");
    assert_eq!(must("--connections 2000 --connections-max 1000"), "configuration");
    assert_eq!(must("--connections 5000000 --shards 1000"), "open files memory");
    // The nearest limit is told with what is needed for that number.
    let report = check(&host(PLAIN), "--connections 3000000 --shards 1000");
    assert_eq!(report.limit("open files").remedy, "sysctl -w fs.file-max=3000170");
}

#[test]
fn a_profile_that_is_asked_for_must_be_met_where_it_can_be() {
    let low_latency = "--profile low-latency";
    let plain = check(&host(PLAIN), low_latency);
    assert_eq!(plain.must(), ["net.core.somaxconn", "net.ipv4.tcp_slow_start_after_idle"]);
    assert_eq!(plain.row("vm.swappiness").verdict, Verdict::Missing, "nobody can change that");

    let tuned = [("net.core.somaxconn", "100000"), ("net.ipv4.tcp_slow_start_after_idle", "0")];
    let mut tuned = host(&tuned);
    assert_eq!(check(&tuned, low_latency).must(), [""; 0]);
    tuned.readings.sysctls.insert("vm.swappiness".into(), Reading::Unreadable);
    assert_eq!(check(&tuned, low_latency).must(), ["vm.swappiness"], "who knows");
    tuned.readings.sysctls.insert("vm.swappiness".into(), Reading::Found("many".into()));
    assert_eq!(check(&tuned, low_latency).must(), ["vm.swappiness"]);
}

#[test]
fn what_keeps_the_server_from_starting_must_change() {
    #[track_caller]
    fn must(change: impl FnOnce(&mut Host), flags: &str, setting: &str, remedy: &str) {
        let mut host = host(PLAIN);
        change(&mut host);
        let report = check(&host, flags);
        assert_eq!(report.must(), [setting]);
        assert!(report.row(setting).remedy.contains(remedy), "{report:?}");
    }
    let too_old = HostError::KernelTooOld { release: "5.15".into() };
    must(|host| host.kernel = Err(too_old), "", "kernel", "boot Linux 6.1 or newer");
    let unknown = HostError::KernelUnknown(io::ErrorKind::NotFound.into());
    must(|host| host.kernel = Err(unknown), "", "kernel", "mount /proc");
    must(|host| host.kernel = Err(HostError::IoUringForbidden), "", "io_uring", "seccomp");
    must(|host| host.cpus = Err(HostError::CpusUnknown), "", "CPUs for shards", "--cpus");
    must(|host| host.descriptor_limit = Ok(64), "", "RLIMIT_NOFILE", "LimitNOFILE");
    must(|host| host.descriptor_limit = Ok(500), "--shards 600", "RLIMIT_NOFILE", "LimitNOFILE");
    let refused = HostError::DescriptorLimit(io::ErrorKind::PermissionDenied.into());
    must(|host| host.descriptor_limit = Err(refused), "", "RLIMIT_NOFILE", "ulimit -n");
}

#[test]
fn memory_is_what_the_narrowest_group_leaves() {
    let mut host = host(PLAIN);
    let group = |path: &str, limit, used| CgroupMemory { path: path.into(), limit, used };
    host.readings.cgroups = vec![
        group("/a/b", 30 << 30, 1 << 30),
        group("/a", 3 << 30, 1 << 30),
        group("/", 9 << 30, 0),
    ];
    let report = check(&host, "");
    let memory = report.limit("memory");
    assert_eq!(memory.connections, (2 << 30) / 10 * 9 / 4_238);
    assert_eq!(memory.found, "2,048 MiB left in control group /a");
    assert!(memory.remedy.contains("MemoryMax="));

    host.readings.cgroups = vec![group("/a", 1 << 30, 2 << 30)];
    assert_eq!(check(&host, "").limit("memory").connections, 0);
    host.readings.memory_available = None;
    host.readings.cgroups.clear();
    assert!(check(&host, "").limits.iter().all(|limit| limit.name != "memory"));
}

#[test]
fn conntrack_is_a_limit_where_it_tracks() {
    let tracking = |count| {
        let conntrack = [
            ("net.netfilter.nf_conntrack_max", "10000"),
            ("net.netfilter.nf_conntrack_count", count),
        ];
        check(&host(&[PLAIN, &conntrack].concat()), "--connections 10000")
    };
    let report = tracking("1000");
    assert_eq!((report.limits[0].name, report.limits[0].connections), ("conntrack", 9_000));
    assert_eq!(report.must(), ["conntrack"]);
    let remedy = &report.limits[0].remedy;
    assert!(remedy.contains("sysctl -w net.netfilter.nf_conntrack_max=11000"), "{remedy}");

    let report = tracking("0");
    assert_eq!(report.must(), [""; 0]);
    assert!(report.notes.iter().any(|note| note.contains("tracks nothing now")));
}

#[test]
fn advice_on_what_is_no_profile() {
    let mut host = host(PLAIN);
    host.readings.governors = ["performance", "powersave"].map(String::from).into();
    host.readings.sysctls.insert("vm.overcommit_memory".into(), Reading::Found("2".into()));
    host.readings.huge_pages = Reading::Missing;
    let report = check(&host, "--profile low-latency");
    let verdict = |setting| {
        let row = report.row(setting);
        assert!(!row.must_change);
        (row.verdict, row.remedy.as_str())
    };
    let governor = (Verdict::Differs, "cpupower frequency-set -g performance");
    assert_eq!(verdict("CPU governor"), governor);
    assert_eq!(
        verdict("vm.overcommit_memory"),
        (Verdict::Differs, "sysctl -w vm.overcommit_memory=0")
    );
    assert_eq!(verdict("transparent huge pages"), (Verdict::Missing, ""));
}

#[test]
fn the_text_says_it_in_two_tables_and_a_sentence() {
    let text = check(&host(PLAIN), "--connections 100000").to_string();
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or("");
    assert_eq!(
        line("net.core.somaxconn").split_whitespace().collect::<Vec<_>>().join(" "),
        "net.core.somaxconn 4096 at least 65535 low sysctl -w net.core.somaxconn=65535"
    );
    assert_eq!(
        line("This host holds"),
        "This host holds about 39,866 idle connections, by descriptors; the next limit is open \
         files (2,466,000)."
    );
    assert!(line("descriptors").contains("low, must change  --shards 6 would hold 100,000"));
    assert!(line("open files").contains("ok"));
    assert!(text.contains("slowed down from 383,867 connections on, and stalls from 575,796 on"));
    assert!(text.contains("at most 28,232 connections per source address"));
    assert!(text.ends_with("\nMust change: 1.\n"), "{text}");
    assert!(text.lines().all(|line| line == line.trim_end()));

    let text = check(&host(PLAIN), "").to_string();
    let advice = "Nothing must change; 3 settings could be better. The sysctls: scripts/tune.sh \
                  apply --profile idle-million\n";
    assert!(text.ends_with(advice), "{text}");
    assert!(!text.contains("FOR "), "no column for a number nobody asked for");
}

#[test]
fn json_has_the_same() {
    let report = check(&host(PLAIN), "--connections 100000 --format json");
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["profile"], "idle-million");
    assert_eq!(json["limits"][0]["connections"], 39_866);
    assert_eq!(json["limits"][0]["fits"], false);
    assert_eq!(json["must_change"], 1);
    let rows = json["settings"].as_array().unwrap();
    let row = rows.iter().find(|row| row["setting"] == "net.core.somaxconn").unwrap();
    assert_eq!(row["verdict"], "low");
}

#[test]
fn thousands_are_apart() {
    for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
        assert_eq!(grouped(number), text);
    }
}
