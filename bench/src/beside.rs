//! Small rooms and echoes beside the main load: do they wait for it?
//!
//! Each of the two is a class of its own, a fan-out at a low rate with its own connections,
//! counters and histogram; an echo is a room whose only member hears itself. Both are in the run
//! from the opening to the closing, and what they measure stands apart in the report.
//!
//! A class has a thread of its own, ahead of the others where that is permitted. A thread reads its
//! connections in turn, so in a thread of the main load a delivery would wait behind thousands of
//! others in the generator, and that wait is not the server's.

use clap::Args;
use serde::Serialize;

use crate::cli::{Common, FanoutArgs};

/// Names of the classes, in the order of [`classes`].
pub const NAMES: [&str; 2] = ["rooms", "echoes"];

/// Path of an echo.
const ECHO_PATH: &str = "/echo";

/// Options of the classes.
#[derive(Debug, Clone, Args, Serialize)]
pub struct BesideArgs {
    /// Small rooms beside the others, measured apart; they are named beside-{room}.
    #[arg(long, default_value_t = 0, value_name = "ROOMS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub beside_rooms: u32,
    /// Members of each; one of them publishes.
    #[arg(long, default_value_t = 2, value_name = "MEMBERS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub beside_members: u32,
    /// Connections to /echo beside the rooms, measured apart (server: fanwire serve --echo).
    #[arg(long, default_value_t = 0, value_name = "CONNECTIONS")]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub beside_echoes: u32,
    /// Messages per second into each small room, and on each connection to /echo.
    #[arg(long, default_value_t = 10.0, value_name = "RATE")]
    pub beside_rate: f64,
}

impl BesideArgs {
    /// Connections of all classes.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.beside_rooms * self.beside_members + self.beside_echoes
    }
}

/// What each class of `main` does, in the order of [`NAMES`]; `None` if there is none of it.
#[must_use]
pub fn classes(main: &FanoutArgs) -> [Option<FanoutArgs>; NAMES.len()] {
    let BesideArgs { beside_rooms, beside_members, beside_echoes, beside_rate } = main.beside;
    let class = |rooms: u32, members: u32| FanoutArgs {
        common: Common { rooms, connections: rooms * members, ..main.common.clone() },
        publishers: rooms,
        roam: false,
        window: None,
        rate: Some(beside_rate * f64::from(rooms)),
        messages: None,
        ..main.clone()
    };
    let rooms = || {
        let apart = |text: &str| text.replace("{room}", "beside-{room}");
        let mut class = class(beside_rooms, beside_members);
        class.path = apart(&class.path);
        class.common.join = class.common.join.as_deref().map(apart);
        class.load.message = apart(&class.load.message);
        class
    };
    let echoes = || {
        let mut class = class(beside_echoes, 1);
        ECHO_PATH.clone_into(&mut class.path);
        class.common.join = None;
        class.sender_excluded = false;
        class
    };
    [(beside_rooms > 0).then(rooms), (beside_echoes > 0).then(echoes)]
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(options: &str) -> FanoutArgs {
        let words = format!("fanwire-bench fanout {options}");
        match Cli::parse_from(words.split(' ')).command {
            Command::Run(scenario) => scenario.fanout().expect("fanout").clone(),
            _ => unreachable!("fanout is a run"),
        }
    }

    #[test]
    fn a_class_is_a_fan_out_with_rooms_of_its_own() {
        assert!(classes(&parse("-c 9")).iter().all(Option::is_none));
        let join = r#"{"room_id":"{room}"}"#;
        let options = "-c 9 --rooms 3 --messages 5 --path /x/{room} --sender-excluded --join";
        let beside = "--beside-rooms 4 --beside-members 3 --beside-rate 2.5 --beside-echoes 7";
        let [rooms, echoes] = classes(&parse(&format!("{options} {join} {beside}")));
        let (rooms, echoes) = (rooms.expect("rooms"), echoes.expect("echoes"));
        assert_eq!((rooms.common.connections, rooms.common.rooms, rooms.publishers), (12, 4, 4));
        assert_eq!((rooms.rate, rooms.messages), (Some(10.0), None));
        assert_eq!(rooms.path, "/x/beside-{room}");
        assert_eq!(rooms.common.join.as_deref(), Some(r#"{"room_id":"beside-{room}"}"#));
        assert!(rooms.sender_excluded && !echoes.sender_excluded);
        assert_eq!((echoes.common.connections, echoes.common.rooms, echoes.publishers), (7, 7, 7));
        assert_eq!(
            (echoes.path.as_str(), echoes.common.join, echoes.rate),
            ("/echo", None, Some(17.5))
        );
    }
}
