use super::ValueError::*;
use super::*;

#[test]
fn counts() {
    #[track_caller]
    fn check(text: &str, expected: Result<usize, ValueError>) {
        assert_eq!(count(text, "2..65536"), expected, "{text:?}");
    }
    check("2", Ok(2));
    check("65_536", Ok(65536));
    check("1", Err(OutOfRange));
    check("65537", Err(OutOfRange));
    for text in ["", "-3", "3.0", "3k", " 3", "99999999999999999999999", "auto"] {
        check(text, Err(NotANumber));
    }
    assert_eq!(auto_count("auto", "1..4|auto"), Ok(Auto::Auto));
    assert_eq!(auto_count("4", "1..4|auto"), Ok(Auto::Set(4)));
    assert_eq!(auto_count("5", "1..4|auto"), Err(OutOfRange));
    assert_eq!(auto_count("Auto", "1..4|auto"), Err(NotANumber));
}

#[test]
fn durations() {
    #[track_caller]
    fn check(text: &str, expected: Result<u64, ValueError>) {
        let expected = expected.map(Duration::from_millis);
        assert_eq!(duration(text, "100ms..1h"), expected, "{text:?}");
    }
    check("5s", Ok(5_000));
    check("5", Ok(5_000));
    check("500ms", Ok(500));
    check("2m", Ok(120_000));
    check("1m30s", Ok(90_000));
    check("1m 30s", Ok(90_000));
    check("1h", Ok(3_600_000));
    check("99ms", Err(OutOfRange));
    check("0", Err(OutOfRange));
    check("3601", Err(OutOfRange));
    for text in ["", "s", "5x", "-5s", "1.5", "5 parsecs", "five"] {
        check(text, Err(NotADuration));
    }
}

#[test]
fn sizes() {
    #[track_caller]
    fn check(text: &str, expected: Result<usize, ValueError>) {
        assert_eq!(size(text, "1B..1TiB").map(Size::bytes), expected, "{text:?}");
    }
    check("1", Ok(1));
    check("65_536", Ok(65_536));
    check("512B", Ok(512));
    check("64KiB", Ok(65_536));
    check("64 KiB", Ok(65_536));
    check("64KB", Ok(64_000));
    check("4MiB", Ok(4 << 20));
    check("1.5MiB", Ok(3 << 19));
    check("1TiB", Ok(1 << 40));
    check("0", Err(OutOfRange));
    check("2TiB", Err(OutOfRange));
    check("99999999999999TiB", Err(OutOfRange));
    for text in ["", "KiB", "-1", "4 bits", "4MiBs", "1..2"] {
        check(text, Err(NotASize));
    }
}

#[test]
fn addresses() {
    for text in ["127.0.0.1:8080", "0.0.0.0:0", "[::1]:80", "[fe80::1%3]:80"] {
        assert!(address(text, "").is_ok(), "{text:?}");
    }
    for text in ["", "127.0.0.1", ":8080", "8080", "localhost:80", "::1:80", "1.2.3.4:65536"] {
        assert_eq!(address(text, ""), Err(NotAnAddress), "{text:?}");
    }
    assert_eq!(address_or_off("off", ""), Ok(Switch::Off));
    assert_eq!(address_or_off("[::1]:1", ""), Ok(Switch::On("[::1]:1".parse().unwrap())));
    assert_eq!(address_or_off("none", ""), Err(NotAnAddress));
}

#[test]
fn cpu_lists() {
    #[track_caller]
    fn check(text: &str, cpus: &[usize], printed: &str) {
        let Auto::Set(list) = super::cpus(text, "").unwrap() else { panic!("{text:?} is a list") };
        assert_eq!((list.as_slice(), &*list.to_string()), (cpus, printed), "{text:?}");
    }
    check("0", &[0], "0");
    check("0-3,8", &[0, 1, 2, 3, 8], "0-3,8");
    check("8, 0 - 1", &[0, 1, 8], "0-1,8");
    check("3,2,1,2-4", &[1, 2, 3, 4], "1-4");
    check("5-5,7", &[5, 7], "5,7");
    assert_eq!(cpus("auto", ""), Ok(Auto::Auto));
    for text in ["", ",", "0,", "3-1", "a", "0-", "-1", "0-1-2", "0-8192", "1.5"] {
        assert_eq!(cpus(text, ""), Err(NotACpuList), "{text:?}");
    }
}

#[test]
fn words() {
    assert_eq!(word("json", ""), Ok(LogFormat::Json));
    assert_eq!(word("trace", ""), Ok(LogLevel::Trace));
    assert_eq!(word::<LogFormat>("JSON", ""), Err(NotAWord));
    assert_eq!(boolean("true", ""), Ok(true));
    assert_eq!(boolean("yes", ""), Err(NotAWord));
}

#[test]
fn sizes_print_in_the_largest_unit_that_is_exact() {
    for (bytes, printed) in [
        (0, "0B"),
        (125, "125B"),
        (1 << 10, "1KiB"),
        ((1 << 10) + 1, "1025B"),
        (3 << 19, "1536KiB"),
        (64 << 20, "64MiB"),
        (64 << 30, "64GiB"),
    ] {
        assert_eq!(Size(bytes).to_string(), printed);
        assert_eq!(size(printed, "0B..64GiB"), Ok(Size(bytes)));
    }
}
