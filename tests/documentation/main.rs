//! The examples of the documentation, played against the real server: what is written is what
//! happens.
//!
//! docs/protocol.md holds conversations and says how they are read. Of the README, the table of the
//! native protocol and the commands with `curl` are put into the same form; of those, one that has
//! no place here fails, so none is forgotten.

mod stage;
#[path = "../support/mod.rs"]
pub mod support;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header, encode};
use stage::{Stage, json, play};
use support::rows;

const PAGE: &str = include_str!("../../docs/protocol.md");
const README: &str = include_str!("../../README.md");

// --- The examples ------------------------------------------------------------------------------

#[test]
fn the_conversations_of_the_page() {
    let token = sign(&fenced(PAGE, "json")[0].text);
    let all = ["native", "raw", "echo"].map(|language| fenced(PAGE, language)).concat();
    assert!(all.len() > 20, "a page of conversations, not {}", all.len());
    let place = |block: &Block| format!("docs/protocol.md:{}", block.line);
    rows(all, place, |block| play(&block.text.replace("TOKEN", &token)));
}

/// A word misspelt behind the fence would take a conversation from the tests, and nobody would see.
#[test]
fn every_block_is_in_a_language_that_is_played_or_only_shown() {
    let page = ["native", "raw", "echo", "json"];
    // Of the README, the commands are played; the others are shown: pictures, settings, a client.
    let readme = ["sh", "text", "toml", "json", "js"];
    for (name, text, known) in
        [("docs/protocol.md", PAGE, &page[..]), ("README.md", README, &readme)]
    {
        for (language, Block { line, .. }) in blocks(text) {
            assert!(known.contains(&language), "{name}:{line}: nobody knows {language:?}");
        }
    }
}

#[test]
fn every_error_code_of_the_readme_has_its_example_in_the_page() {
    let codes = table_after(README, "| Code | Meaning |");
    let codes = codes.flat_map(|line| code_spans(line.split('|').nth(1).unwrap_or_default()));
    let codes: Vec<&str> = codes.collect();
    assert!(codes.len() > 10, "{codes:?}");
    for code in codes {
        assert!(PAGE.contains(&format!("< {{\"type\":\"error\",\"code\":\"{code}\"")), "{code}");
    }
}

#[test]
fn the_table_of_the_native_protocol_in_the_readme() {
    let mut text = "$ fanwire serve --auth-keys HS256:secret\n\
                    alice> GET /ws?token=ALICE\nalice< 101\nbob> GET /ws?token=BOB\nbob< 101\n"
        .to_owned();
    text += &lobby("bob", 17);
    let mut rows = 0;
    for line in table_after(README, "| Client sends | Server answers |") {
        let spans: Vec<&str> = code_spans(line).into_iter().filter(|it| it.contains('{')).collect();
        let (sent, answer) = (spans[0], spans[1]);
        if sent.contains("broadcast") {
            text += "alice> {\"type\":\"join\",\"room_id\":\"lobby\"}\n\
                     alice< {\"type\":\"joined\",\"room_id\":\"lobby\",\"offset\":17}\n";
        }
        let receivers: &[&str] = match sent {
            sent if sent.contains("broadcast") => &["alice", "bob"],
            sent if sent.contains("direct") => &["bob"],
            _ => &["alice"],
        };
        let filled = |it: &str| {
            it.replace("ANY", r#"[{"any":"JSON"}]"#)
                .replace(":T}", ":\"ALICE\"}")
                .replace("600", "N")
        };
        writeln!(text, "alice> {}", filled(sent)).expect("a String takes all");
        for name in receivers {
            writeln!(text, "{name}< {}", filled(answer)).expect("a String takes all");
        }
        rows += 1;
    }
    assert_eq!(rows, 6, "{text}");
    for user in ["alice", "bob"] {
        let rooms = r#"[{"pattern":"*","join":true,"publish":true}]"#;
        let token = sign(&format!(r#"{{"sub":"{user}","direct":true,"rooms":{rooms}}}"#));
        text = text.replace(&user.to_uppercase(), &token);
    }
    play(&text);
}

#[test]
fn the_commands_of_the_readme() {
    let commands = fenced(README, "sh").into_iter().filter(|block| block.text.contains("curl "));
    let place = |block: &Block| format!("README.md:{}", block.line);
    rows(commands.collect(), place, |block| {
        let commands = format!("\n{}", block.text).replace("\ncurl ", "\n$ curl ");
        let commands = commands.replace("\n# ", "\n");
        if commands.contains("/v1/publish") {
            play(&(lobby("alice", 17) + &commands + PUBLISHED));
        } else if commands.contains("/v1/reload") {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("fanwire.toml");
            let set = |mark| std::fs::write(&file, format!("high_water_mark = \"{mark}\"\n"));
            set("4MiB").expect("it can be written");
            let mut stage = Stage::start(&["--config", file.to_str().expect("it is UTF-8")]);
            set("8MiB").expect("it can be written");
            stage.play(&commands);
        } else {
            panic!("what does this command need? Say it here, and play it");
        }
    });
}

/// What the member of the lobby gets of the README's publishes.
const PUBLISHED: &str = r#"
alice< {"type":"broadcast","room_id":"lobby","sender":"ci","offset":18,"content":{"text":"The build is green."}}
alice< {"type":"broadcast","room_id":"lobby","sender":"ci","offset":19,"content":{"text":"The build is red."}}
"#;

#[test]
fn an_example_that_is_wrong_fails() {
    let right = "alice> GET /ws  Sec-WebSocket-Protocol: fanwire.v1\n\
                 alice< 101  Sec-WebSocket-Protocol: fanwire.v1\n\
                 alice> {\"type\":\"join\",\"room_id\":\"lobby\",\"user_id\":\"alice\"}\n\
                 alice< {\"type\":\"joined\",\"room_id\":\"lobby\",\"offset\":0}\n\
                 $ curl http://127.0.0.1:8081/v1/publish -H 'Content-Type: application/json' \
                 -d '{\"room_id\":\"lobby\",\"content\":1}'\n\
                 {\"room_id\":\"lobby\",\"offset\":1}\n\
                 alice< {\"type\":\"broadcast\",\"room_id\":\"lobby\",\"sender\":\"anonymous\",\
                 \"offset\":1,\"content\":1}\n\
                 alice> {\"type\":\"dance\"}\n\
                 alice< {\"type\":\"error\",\"code\":\"unknown_type\",\"message\":\"...\"}\n\
                 bob> GET /raw/lobby\nbob< 101\nbob> hello\nbob< hello\n\
                 bob> close 4000 bye\nbob< close 4000\n";
    play(right);
    let mistakes = vec![
        ("< 101  Sec-WebSocket-Protocol: fanwire.v1", "< 101  Sec-WebSocket-Protocol: fanwire.v2"),
        ("bob< 101", "bob< 404"),
        ("\"offset\":0", "\"offset\":1"),
        ("\"offset\":0", "\"offset\":\"0\""),
        ("\"offset\":0", "\"offset\":0,\"id\":7"),
        ("\"type\":\"joined\",", ""),
        ("\"joined\",\"room_id\":\"lobby\"", "\"joined\",\"room_id\":\"Lobby\""),
        ("{\"room_id\":\"lobby\",\"offset\":1}\n", "{\"room_id\":\"lobby\",\"offset\":2}\n"),
        ("{\"room_id\":\"lobby\",\"offset\":1}\n", ""),
        ("v1/publish", "v1/nowhere"),
        ("\"anonymous\"", "\"alice\""),
        ("unknown_type", "invalid_json"),
        ("\"message\":\"...\"", "\"message\":N"),
        ("bob< hello", "bob< hullo"),
        ("bob< hello", "bob< binary 68 65 6c 6c 6f"),
        ("bob< hello\nbob> close 4000 bye\nbob< close 4000\n", ""),
        ("bob< close 4000", "bob< close 4001"),
        ("bob< close 4000", "bob< close 4000 bye"),
        ("bob< close 4000\n", ""),
        ("bob> close", "bob close"),
    ];
    let name = |mistake: &(&str, &str)| format!("{} instead of {}", mistake.1, mistake.0);
    rows(mistakes, name, |(from, to)| {
        assert!(right.contains(from), "there is none to spoil");
        let played = catch_unwind(AssertUnwindSafe(|| play(&right.replacen(from, to, 1))));
        assert!(played.is_err(), "nobody noticed");
    });
}

/// A member of the lobby that has published so many messages there.
fn lobby(name: &str, messages: u32) -> String {
    let mut text = format!(
        "{name}> {{\"type\":\"join\",\"room_id\":\"lobby\"}}\n\
         {name}< {{\"type\":\"joined\",\"room_id\":\"lobby\",\"offset\":0}}\n"
    );
    for offset in 1..=messages {
        let said = format!(
            "{name}> {{\"type\":\"broadcast\",\"room_id\":\"lobby\",\"content\":0}}\n\
             {name}< {{\"type\":\"broadcast\",\"room_id\":\"lobby\",\"sender\":\"...\",\
             \"offset\":{offset},\"content\":0}}\n"
        );
        text += &said;
    }
    text
}

/// A token with these claims that lasts ten minutes.
fn sign(claims: &str) -> String {
    let mut claims = json(claims).expect("claims are JSON");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    claims["exp"] = (now + 600).into();
    let secret = std::fs::read_to_string("tests/keys/secret").expect("it is there");
    let key = EncodingKey::from_secret(secret.trim_end().as_bytes());
    encode(&Header::default(), &claims, &key).expect("it can be signed")
}

// --- The page ----------------------------------------------------------------------------------

/// A fenced block.
#[derive(Clone)]
struct Block {
    /// Where it begins in its page.
    line: usize,
    text: String,
}

/// The fenced blocks of a language.
fn fenced(page: &str, language: &str) -> Vec<Block> {
    let of_it = blocks(page).into_iter().filter(|(of, _)| *of == language);
    of_it.map(|(_, block)| block).collect()
}

/// All fenced blocks with their languages.
fn blocks(page: &str) -> Vec<(&str, Block)> {
    let (mut all, mut open) = (Vec::new(), None::<(&str, Block)>);
    for (line, text) in (1..).zip(page.lines()) {
        match (text.trim_start().strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some((language, Block { line, text: String::new() })),
            (Some(_), Some(block)) => all.push(block),
            (None, Some((of, mut block))) => {
                block.text += text;
                block.text.push('\n');
                open = Some((of, block));
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without an end");
    all
}

/// The lines of the table with this head.
fn table_after<'p>(page: &'p str, head: &str) -> impl Iterator<Item = &'p str> {
    let (_, after) = page.split_once(head).expect("the page has this table");
    after.lines().skip(2).take_while(|line| line.starts_with('|'))
}

fn code_spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}
