use std::ffi::OsString;

use super::*;
use crate::config;

/// A start-up on a host that gives each shard descriptors for 19,935 connections.
fn startup(flags: &str, shards: usize) -> Startup {
    let args = "fanwire serve".split(' ').chain(flags.split_whitespace()).map(OsString::from);
    let settings = config::load(args, []).unwrap().settings;
    let plan = Plan {
        shards,
        cpus: vec![0, 1, 2, 8],
        listen: settings.listen.clone(),
        limits: settings.limits(shards, 19_935),
    };
    Startup { plan, descriptor_limit: 20_000 }
}

#[test]
fn the_announcement_says_where_and_how_many() {
    let startup = startup("--insecure --listen 0.0.0.0:80 --listen [::]:80", 4);
    let expected = "listening on 0.0.0.0:80, [::]:80; admin on http://127.0.0.1:8081/; 4 shards on \
                    CPU 0-2,8; holds up to 79740 connections, limited by RLIMIT_NOFILE 20000 per \
                    shard (raise it with ulimit -n or systemd's LimitNOFILE; --shards 53 would \
                    hold a million); page http://127.0.0.1:80/; ready";
    let admin = "127.0.0.1:8081".parse().unwrap();
    assert_eq!(startup.announcement(Some(admin)), expected);
}

#[test]
fn the_announcement_names_what_limits() {
    #[track_caller]
    fn check(flags: &str, shards: usize, expected: &str) {
        let announcement = startup(flags, shards).announcement(None);
        assert!(announcement.contains("; admin off; "), "{announcement}");
        assert!(announcement.contains(expected), "{announcement}");
    }
    check("--connections-max 999", 1, "1 shard on CPU");
    check("--connections-max 999", 4, "up to 999 connections, limited by connections_max;");
    // Nothing more to wish for.
    check("", 53, "up to 1056555 connections, limited by RLIMIT_NOFILE 20000 per shard (raise");
    check("", 53, "LimitNOFILE); page");
}

#[test]
fn the_page_is_on_an_address_that_a_browser_opens() {
    for (address, expected) in [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:8080", "[::1]:8080"),
        ("192.0.2.7:80", "192.0.2.7:80"),
        ("[2001:db8::1]:80", "[2001:db8::1]:80"),
    ] {
        assert_eq!(reachable(address.parse().unwrap()).to_string(), expected);
    }
}
