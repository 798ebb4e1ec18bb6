use tempfile::TempDir;

use super::*;

/// A host that shows these files.
fn host(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn read(files: &[(&str, &str)]) -> Readings {
    super::read(host(files).path(), ["net.core.somaxconn"])
}

#[test]
fn a_host_that_shows_nothing_is_read_as_nothing() {
    let readings = read(&[]);
    assert!(readings.sysctls.values().all(|reading| *reading == Reading::Missing));
    assert!(readings.sysctls.contains_key("net.core.somaxconn"));
    assert_eq!((readings.memory, readings.memory_available), (None, None));
    assert_eq!((readings.cgroups, readings.governors), (vec![], BTreeSet::new()));
    assert_eq!(readings.huge_pages, Reading::Missing);
}

#[test]
fn values_are_as_the_kernel_prints_them() {
    let readings = read(&[
        ("proc/sys/net/core/somaxconn", "4096\n"),
        ("proc/sys/net/ipv4/tcp_mem", "1\t22\t333\n"),
        ("proc/sys/kernel/osrelease", "6.18.44-fc\n"),
        ("proc/meminfo", "MemTotal:   2048 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance\n"),
        ("sys/devices/system/cpu/cpu2/online", "1\n"),
    ]);
    assert_eq!(readings.sysctls["net.core.somaxconn"].numbers(), Some(vec![4096]));
    assert_eq!(readings.sysctls["net.ipv4.tcp_mem"].numbers(), Some(vec![1, 22, 333]));
    let release = &readings.sysctls["kernel.osrelease"];
    assert_eq!((release.text(), release.numbers()), (Some("6.18.44-fc"), None));
    assert_eq!(readings.memory, Some(2 << 20));
    assert_eq!(readings.memory_available, Some(1 << 20));
    assert_eq!(readings.governors, ["performance", "powersave"].map(String::from).into());
}

#[test]
fn a_directory_in_place_of_a_value_is_unreadable() {
    let readings = read(&[("proc/sys/fs/file-max/x", "")]);
    assert_eq!(readings.sysctls["fs.file-max"], Reading::Unreadable);
}

#[test]
fn memory_limits_of_both_hierarchies_are_found_outwards() {
    let group = |path: &str, limit, used| CgroupMemory { path: path.into(), limit, used };
    let version_2 = [
        ("proc/self/cgroup", "0::/system.slice/fanwire.service\n"),
        ("sys/fs/cgroup/system.slice/fanwire.service/memory.max", "max\n"),
        ("sys/fs/cgroup/system.slice/memory.max", "1000\n"),
        ("sys/fs/cgroup/system.slice/memory.current", "500\n"),
        ("sys/fs/cgroup/system.slice/memory.stat", "anon 100\ninactive_file 300\n"),
    ];
    assert_eq!(read(&version_2).cgroups, [group("/system.slice", 1000, 200)]);

    // As Docker shows it: the host's path, and the container's own group as the root.
    let version_1 = [
        ("proc/self/cgroup", "5:cpu:/docker/x\n4:memory,hugetlb:/docker/x\n0::/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
        ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700\n"),
        ("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 600\n"),
    ];
    assert_eq!(read(&version_1).cgroups, [group("/", 2000, 100)]);

    let unlimited = [
        ("proc/self/cgroup", "4:memory:/\n"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
    ];
    assert_eq!(read(&unlimited).cgroups, []);
}
