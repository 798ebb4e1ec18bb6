//! A backend: publishes in batches over HTTP, into rooms of both namespaces.
//!
//! It fills the room whose slow members skip, and speaks into those where others go in and out, so
//! that a publish often meets a room that has just come or is about to go.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::{SLEEPS, WANDERS};
use crate::cli::Target;
use crate::http::{Client, HttpError};
use crate::random::Xorshift;

/// Between two batches.
const EVERY: Duration = Duration::from_millis(250);
/// What each says in the room of the slow: 80 KB, 320 KB per second.
const FILL: (usize, usize) = (20, 4000);

/// Publishes until it is over; returns how many messages.
///
/// # Errors
/// What was refused.
pub fn publish(admin: &Target, over: &AtomicBool) -> Result<u64, String> {
    let publish = || -> Result<u64, HttpError> {
        let (mut client, mut random) = (Client::connect(admin)?, Xorshift::new(0));
        let mut published = 0;
        while !over.load(Ordering::Relaxed) {
            let items = items(&mut random);
            let body = json!({ "items": items }).to_string();
            let answer = client.ask("POST", "/v1/publish/batch", body.as_bytes())?;
            let answer: Value = serde_json::from_slice(&answer).map_err(io::Error::from)?;
            let answered = answer["items"].as_array().map_or(&[][..], Vec::as_slice);
            // Nobody may be in a room: that is no error but an offset of null.
            let done = |item: &&Value| item.get("offset").is_some();
            if answered.len() != items.len() || !answered.iter().all(|item| done(&item)) {
                return Err(HttpError::Item(answer.to_string()));
            }
            published += items.len() as u64;
            thread::sleep(EVERY);
        }
        Ok(published)
    };
    publish().map_err(|error| format!("backend: {error}"))
}

fn items(random: &mut Xorshift) -> Vec<Value> {
    let filling = "x".repeat(FILL.1);
    let mut items = vec![json!({"room_id": SLEEPS.prefix, "content": filling}); FILL.0];
    for _ in 0..3 {
        let room_id = format!("{}{}", WANDERS.prefix, random.draw() % WANDERS.rooms);
        items.push(json!({"room_id": room_id, "content": {"of": "a backend"}}));
    }
    // The idle ones are in raw rooms.
    let room_id = format!("soak-idle-{}", random.draw() % 30);
    items.push(json!({"room_id": room_id, "text": "as text"}));
    items.push(json!({"room_id": room_id, "binary": "AAECAw=="}));
    items
}
