use super::*;

#[test]
fn kernel_versions() {
    for (release, version) in [
        ("6.18.44-fc-v669", Some((6, 18))),
        ("6.1.0-13-amd64", Some((6, 1))),
        ("5.15.167.4-microsoft-standard-WSL2", Some((5, 15))),
        ("7.0-rc1", Some((7, 0))),
        ("6", None),
        ("linux", None),
        ("", None),
    ] {
        assert_eq!(kernel_version(release), version, "{release:?}");
    }
    let new_enough = |version| version >= KERNEL_MIN;
    assert_eq!([(5, 15), (6, 0), (6, 1), (7, 0)].map(new_enough), [false, false, true, true]);
}

#[test]
fn io_uring_errors_tell_causes_apart() {
    #[track_caller]
    fn check(errno: i32, sysctl: u8, expected: &str) {
        let message = io_uring_error(io::Error::from_raw_os_error(errno), sysctl).to_string();
        assert!(message.contains(expected), "{errno}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    check(libc::EPERM, 2, "disabled for all processes by kernel.io_uring_disabled = 2");
    check(libc::EPERM, 1, "or run Fanwire in the group of kernel.io_uring_group");
    check(libc::EPERM, 0, "seccomp");
    check(libc::EACCES, 0, "seccomp");
    check(libc::ENOSYS, 0, "CONFIG_IO_URING");
    check(libc::EINVAL, 0, "Linux 6.1 or newer");
    check(libc::ENOMEM, 0, "memory limit");
    check(libc::EMFILE, 0, "ulimit -n");
    check(libc::EIO, 0, "cannot create an io_uring ring");
}

#[test]
fn listen_errors_tell_causes_apart() {
    #[track_caller]
    fn check(address: &str, errno: i32, expected: &str) {
        let address = address.parse().unwrap();
        let message = ListenError::new(address, io::Error::from_raw_os_error(errno)).to_string();
        assert!(message.starts_with(&format!("cannot listen on {address}: ")), "{message}");
        assert!(message.contains(expected), "{errno}: {message}");
        assert!(!message.contains('\n'), "{message}");
    }
    check("127.0.0.1:8080", libc::EADDRINUSE, "sport = 8080");
    check("127.0.0.1:80", libc::EACCES, "setcap cap_net_bind_service=+ep /");
    check("192.0.2.1:8080", libc::EADDRNOTAVAIL, "use 0.0.0.0:8080 for all");
    check("[2001:db8::1]:80", libc::EADDRNOTAVAIL, "use [::]:80 for all");
    check("[::1]:80", libc::EAFNOSUPPORT, "use an IPv4 address");
    check("[::1]:80", libc::EIO, "Input/output error");
}

#[test]
fn descriptor_budget() {
    assert_eq!(connections_per_shard(20_000, 1, 2).unwrap(), 19_933);
    assert_eq!(connections_per_shard(20_000, 2, 55).unwrap(), 19_879);
    assert_eq!(connections_per_shard(68, 1, 2).unwrap(), 1);
    let error = connections_per_shard(67, 1, 2).unwrap_err();
    let expected = "RLIMIT_NOFILE is 67, of which a shard needs 67 for itself; raise it (ulimit -n, \
                    systemd: LimitNOFILE=)";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn more_shards_than_the_quotient_because_the_deal_is_random() {
    assert_eq!(shards_for(1_000_000, 19_933), 53);
    assert_eq!(shards_for(0, 19_933), 0);
    assert_eq!(shards_for(1000, 1), 1000);
    // A random deal of a million over that many never fills one: the fullest has room left.
    let (shards, limit) = (53, 19_933);
    let mut held = vec![0; shards];
    let mut random = 1_u64;
    for _ in 0..1_000_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        held[(random >> 33) as usize % shards] += 1;
    }
    assert!(held.iter().all(|&held| held <= limit), "{held:?}");
}

#[test]
fn kernel_cpu_lists() {
    for (cpu, list, expected) in [
        (0, "0-1", true),
        (1, "0-1", true),
        (2, "0-1", false),
        (8, "0-3,8", true),
        (5, "0-3,8", false),
        (0, "", false),
    ] {
        assert_eq!(is_listed(cpu, list), expected, "{cpu} in {list:?}");
    }
}

#[test]
fn cpus_of_this_host() {
    let allowed = allowed_cpus().unwrap();
    assert!(allowed.is_sorted() && !allowed.is_empty());
    check_cpus(&allowed).unwrap();
    let error = check_cpus(&[allowed[0], 8191]).unwrap_err();
    assert!(error.to_string().starts_with("cpus names CPU 8191, which is not online; online are "));
}
