use std::io::Write;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::*;
use crate::config::{Auto, LogFormat, Switch};

fn load(flags: &[&str], variables: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let args = ["fanwire", "config"].iter().chain(flags).map(OsString::from);
    super::load(args, variables.iter().map(|(name, value)| (name.into(), value.into())))
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let file = file("close_timeout = 1\nsend_timeout = 2\ndrain_timeout = \"3s\"\n");
    let variables = [("FANWIRE_SEND_TIMEOUT", "20"), ("FANWIRE_DRAIN_TIMEOUT", "30")];
    let flags = ["--config", path(&file), "--drain-timeout", "300"];
    let loaded = load(&flags, &variables).unwrap();
    let Settings { handshake_timeout, close_timeout, send_timeout, drain_timeout, .. } =
        loaded.settings;
    let timeouts = [handshake_timeout, close_timeout, send_timeout, drain_timeout];
    assert_eq!(timeouts, [5, 1, 20, 300].map(Duration::from_secs));
    let origin = |key| loaded.origin(key).to_string();
    assert_eq!(origin("handshake_timeout"), "default");
    assert_eq!(origin("close_timeout"), format!("{} line 1", path(&file)));
    assert_eq!(origin("send_timeout"), "variable FANWIRE_SEND_TIMEOUT");
    assert_eq!(origin("drain_timeout"), "flag --drain-timeout");
}

#[test]
fn a_list_replaces_the_list_below_it() {
    let file = file("listen = [\"127.0.0.1:1\", \"[::1]:1\"]\nadmin = \"off\"\necho = true");
    let ports = |flags: &[&str], variables: &[_]| {
        let listen = load(flags, variables).unwrap().settings.listen;
        listen.iter().map(|address| address.port()).collect::<Vec<_>>()
    };
    let from_file = ["--config", path(&file)];
    let variable = [("FANWIRE_LISTEN", "127.0.0.1:2,[::1]:2,127.0.0.2:2")];
    assert_eq!(ports(&from_file, &[]), [1, 1]);
    assert_eq!(ports(&from_file, &variable), [2, 2, 2]);
    let flags = [&from_file[..], &["--listen", "[::1]:3", "--listen=127.0.0.2:4"]].concat();
    assert_eq!(ports(&flags, &variable), [3, 4]);
}

#[test]
fn every_plain_kind_of_value_can_be_overridden_back() {
    let file = file("shards = 0x10\nadmin = \"off\"\necho = true\nlog_format = \"json\"");
    let settings = load(&["--config", path(&file)], &[]).unwrap().settings;
    assert_eq!((settings.shards, settings.admin), (Auto::Set(16), Switch::Off));
    assert_eq!((settings.echo, settings.log_format), (true, LogFormat::Json));
    let flags = "--shards auto --admin 127.0.0.1:8081 --echo=false --log-format text";
    let flags: Vec<_> = ["--config", path(&file)].into_iter().chain(flags.split(' ')).collect();
    assert_eq!(load(&flags, &[]).unwrap().settings, load(&[], &[]).unwrap().settings);
}

#[test]
fn the_file_is_named_by_flag_or_variable() {
    let (by_flag, by_variable) = (file("shards = 1"), file("shards = 2"));
    let variable = [("FANWIRE_CONFIG", path(&by_variable))];
    assert_eq!(load(&[], &variable).unwrap().settings.shards, Auto::Set(2));
    let loaded = load(&["--config", path(&by_flag)], &variable).unwrap();
    assert_eq!(loaded.settings.shards, Auto::Set(1));
    assert!(loaded.warnings.is_empty());
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_nearest_name() {
    let variables =
        [("FANWIRE_SHRADS", "4"), ("FANWIRE_QQQ", ""), ("PATH", "/bin"), ("FANWIRE_echo", "true")];
    let loaded = load(&[], &variables).unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    let prefix = "environment variable";
    let expected = [
        format!(
            "{prefix} FANWIRE_SHRADS is no setting and is ignored; did you mean FANWIRE_SHARDS?"
        ),
        format!("{prefix} FANWIRE_QQQ is no setting and is ignored"),
        format!("{prefix} FANWIRE_echo is no setting and is ignored; did you mean FANWIRE_ECHO?"),
    ];
    assert_eq!(warnings, expected);
    assert_eq!(loaded.settings, load(&[], &[]).unwrap().settings);
}

#[test]
fn errors_of_flags_and_variables_name_key_value_range_and_origin() {
    #[track_caller]
    fn check(flags: &[&str], variables: &[(&str, &str)], expected: &str) {
        assert_eq!(load(flags, variables).unwrap_err().to_string(), expected);
    }
    check(
        &["--shards=0"],
        &[],
        "shards = \"0\" is out of range; accepted: 1..1024|auto (flag --shards)",
    );
    check(
        &["--shards", "-1"],
        &[],
        "shards = \"-1\" is not a whole number; accepted: 1..1024|auto (flag --shards)",
    );
    check(
        &["--handshake-timeout", "5x"],
        &[],
        "handshake_timeout = \"5x\" is not a duration such as 500ms, 5s or 2m (a bare number is \
         seconds); accepted: 100ms..1m (flag --handshake-timeout)",
    );
    check(
        &["--echo=yes"],
        &[],
        "echo = \"yes\" is not one of the accepted words; accepted: true|false (flag --echo)",
    );
    check(
        &["--listen=127.0.0.1:1", "--listen=nowhere"],
        &[],
        "listen = \"nowhere\" is not an address with a port such as 127.0.0.1:8080 or [::1]:8080; \
         accepted: IP:PORT (flag --listen)",
    );
    check(
        &["--room-policy=a=drop-oldest/1MiB", "--room-policy=b=drop/1MiB"],
        &[],
        "room_policy = \"b=drop/1MiB\" names no policy behind the =: give disconnect, \
         skip-to-newest or drop-oldest; accepted: PATTERN=POLICY/MARK[/AGE]|off (flag --room-policy)",
    );
    check(
        &[],
        &[("FANWIRE_ROOM_POLICY", "a=drop-oldest/1MiB,b=drop-oldest/1KiB")],
        "room_policy = \"b=drop-oldest/1KiB\" has no high-water mark behind the policy: give a size \
         of 64KiB..1GiB; accepted: PATTERN=POLICY/MARK[/AGE]|off (variable FANWIRE_ROOM_POLICY)",
    );
    check(
        &[],
        &[("FANWIRE_LOG_LEVEL", "loud")],
        "log_level = \"loud\" is not one of the accepted words; accepted: \
         error|warn|info|debug|trace (variable FANWIRE_LOG_LEVEL)",
    );
    // Wrong below, though overridden above: it would come into force when the flag goes.
    check(
        &["--ws-message-bytes-max=1KiB"],
        &[("FANWIRE_WS_MESSAGE_BYTES_MAX", "1GiB")],
        "ws_message_bytes_max = \"1GiB\" is out of range; accepted: 125B..64MiB (variable \
         FANWIRE_WS_MESSAGE_BYTES_MAX)",
    );
    check(
        &["--config", "/nonexistent"],
        &[],
        "cannot read the configuration file /nonexistent: No such file or directory (os error 2)",
    );
}

#[test]
fn errors_of_the_file_name_the_line() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let file = file(text);
        let error = load(&["--config", path(&file)], &[]).unwrap_err().to_string();
        assert_eq!(error.replace(path(&file), "FILE"), expected);
    }
    check(
        "# comment\n\nshards = 1025",
        "shards = \"1025\" is out of range; accepted: 1..1024|auto (FILE line 3)",
    );
    check("echo = true\nshard = 2", "FILE line 2: there is no setting shard; did you mean shards?");
    check(
        "log-format = \"json\"",
        "FILE line 1: there is no setting log-format; did you mean log_format?",
    );
    check("config = \"other.toml\"", "FILE line 1: there is no setting config");
    check("[limits]\nrooms_max = 1", "FILE line 1: there is no setting limits");
    check("[shards]\nmax = 1", "FILE line 1: shards takes one plain value");
    check("shards = [1]", "FILE line 1: shards takes one plain value");
    check("drain_timeout = 2026-01-01", "FILE line 1: drain_timeout takes one plain value");
    check("listen = []", "FILE line 1: listen takes a list of strings");
    check("listen = [[\"127.0.0.1:1\"]]", "FILE line 1: listen takes a list of strings");
    check(
        "listen = [\"127.0.0.1:1\",\n  \"x\"]",
        "listen = \"x\" is not an address with a port such as 127.0.0.1:8080 or [::1]:8080; \
         accepted: IP:PORT (FILE line 1)",
    );
    check(
        "room_policy = [\"a=drop-oldest/1MiB\",\n  \"b=drop-oldest/1MiB/9h\"]",
        "room_policy = \"b=drop-oldest/1MiB/9h\" has no age behind the high-water mark: give a \
         duration of 100ms..1h, or none; accepted: PATTERN=POLICY/MARK[/AGE]|off (FILE line 1)",
    );
    check("echo = true\necho = true", "FILE line 2: not TOML: duplicate key");
}

#[test]
fn usage_errors_are_left_to_clap() {
    for flags in [&["--nope"][..], &["--shards"], &["--shards=1", "--shards=2"], &["extra"]] {
        assert!(matches!(load(flags, &[]), Err(ConfigError::Usage(_))), "{flags:?}");
    }
    // Help is shown however wrong the rest of the configuration is.
    let help = load(&["--help"], &[("FANWIRE_SHARDS", "x")]).unwrap_err();
    assert!(matches!(help, ConfigError::Usage(error) if error.exit_code() == 0));
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf8_is_an_error() {
    use std::os::unix::ffi::OsStringExt;
    let args = ["fanwire", "serve"].map(OsString::from);
    let variable = (OsString::from("FANWIRE_ADMIN"), OsString::from_vec(vec![0xff]));
    let error = super::load(args, [variable]).unwrap_err();
    assert_eq!(error.to_string(), "environment variable FANWIRE_ADMIN is not UTF-8");
}

#[test]
fn the_printed_configuration_gives_itself() {
    let flags = "--listen 127.0.0.1:1 --listen [::1]:2 --admin off --echo --shards 7 --cpus 3,0-1 \
                 --connections-max 123456 --handshake-timeout 1500ms --drain-timeout 1m30s \
                 --high-water-mark 3000000 --target-bytes-max 1000 --log-format json \
                 --room-policy ticker:*=skip-to-newest/256KiB/1m30s,a=b=drop-oldest/1MiB";
    for flags in ["", flags] {
        let printed = load(&flags.split_whitespace().collect::<Vec<_>>(), &[]).unwrap();
        let file = file(&printed.to_toml());
        let read = load(&["--config", path(&file)], &[]).unwrap();
        assert_eq!(read.settings, printed.settings);
        for arg in settings_command().get_arguments() {
            let origin = read.origin(arg.get_id().as_str());
            assert!(matches!(origin, Origin::File { .. }), "{arg} is not in the file");
        }
    }
}

#[test]
fn the_printed_configuration_explains_every_key() {
    let printed = load(&["--shards", "7"], &[]).unwrap().to_toml();
    let expected = "Accepted: 1..1024|auto. Default: auto. Set by: flag --shards.\nshards = 7\n";
    assert!(printed.contains(expected), "{printed}");
    assert!(printed.lines().all(|line| line.len() <= 100 && !line.ends_with(' ')));
    let explained = printed.lines().filter(|line| line.starts_with("# Accepted: ")).count();
    assert_eq!(explained, settings_command().get_arguments().count());
}

#[test]
fn a_check_takes_its_own_options_beside_the_settings() {
    let check = |flags: &str| {
        let args = "fanwire check".split(' ').chain(flags.split_whitespace()).map(OsString::from);
        super::load(args, [])
    };
    let loaded = check("--profile low-latency --connections 5 --format json --shards 3").unwrap();
    let options = CheckOptions {
        profile: Some(Profile::LowLatency),
        connections: Some(5),
        format: ReportFormat::Json,
    };
    assert_eq!((loaded.action, loaded.settings.shards), (Action::Check(options), Auto::Set(3)));
    let loaded = check("").unwrap();
    let options = CheckOptions { profile: None, connections: None, format: ReportFormat::Text };
    assert_eq!(loaded.action, Action::Check(options));
    for name in [Profile::IdleMillion, Profile::LowLatency].map(Profile::name) {
        let loaded = check(&format!("--profile {name}")).unwrap();
        assert!(
            matches!(loaded.action, Action::Check(options) if options.profile().name() == name)
        );
    }
    for wrong in ["--profile fastest", "--connections 0", "--connections 100000001", "--format xml"]
    {
        assert!(matches!(check(wrong), Err(ConfigError::Usage(_))), "{wrong}");
    }
}
