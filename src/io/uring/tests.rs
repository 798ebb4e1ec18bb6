//! The ring at its limits, on a real kernel: a completion queue that is far too small, a poll of
//! the bell that the kernel ends, and what an enter may say.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;

/// Pairs of sockets: many times what the small queue holds.
const PAIRS: usize = 50;

/// How often the bell rings in between.
const ROUNDS: usize = 20;

impl Uring {
    /// A ring whose completion queue overflows at once; the kernel takes no smaller one.
    fn small() -> (Self, Bells) {
        let (bells, _) = Bells::new(1).expect("descriptors");
        let mut uring = Self::new(bells.clone(), 0).expect("a kernel with io_uring");
        // With the one goes what was staged in it.
        uring.ring = build_ring(1, 2).expect("as the first");
        uring.watch_bell();
        uring.ring.submit().expect("room for one");
        (uring, bells)
    }

    /// Enters and reaps until `wanted` completions have come.
    ///
    /// # Panics
    /// When one does not come.
    fn await_completions(&mut self, wanted: usize) -> Vec<Completion<Lease>> {
        let mut completions = Vec::new();
        let patience = Instant::now() + Duration::from_secs(20);
        while completions.len() < wanted {
            self.enter(Wait::Until(patience));
            self.reap(&mut completions);
            assert!(Instant::now() < patience, "{} of {wanted} came", completions.len());
        }
        completions
    }

    /// Enters and reaps once more; whether something has come.
    fn reap_some(&mut self, completions: &mut Vec<Completion<Lease>>) -> bool {
        let before = completions.len();
        self.enter(Wait::No);
        self.reap(completions);
        completions.len() > before
    }

    fn check_quiet(&mut self) {
        let mut completions = Vec::new();
        assert!(!self.reap_some(&mut completions), "{completions:?}");
    }
}

fn pairs() -> Vec<(UnixStream, UnixStream)> {
    (0..PAIRS).map(|_| UnixStream::pair().expect("descriptors")).collect()
}

fn socket_of(stream: &UnixStream) -> Socket {
    Socket(stream.as_raw_fd().cast_unsigned())
}

fn token_of(number: usize) -> Token {
    Token::new(number as u64)
}

/// The numbers that `name` finds in completions, in order.
fn numbers(
    completions: &[Completion<Lease>],
    name: fn(&Completion<Lease>) -> Option<Token>,
) -> Vec<u64> {
    let mut numbers: Vec<u64> =
        completions.iter().filter_map(name).map(|token| token.number()).collect();
    numbers.sort_unstable();
    numbers
}

fn all() -> Vec<u64> {
    (0..PAIRS as u64).collect()
}

const fn readable(completion: &Completion<Lease>) -> Option<Token> {
    match completion {
        Completion::Readable(token) => Some(*token),
        _ => None,
    }
}

const fn short(completion: &Completion<Lease>) -> Option<Token> {
    match completion {
        Completion::SentShort(token, Ok(0)) => Some(*token),
        _ => None,
    }
}

const fn is_woken(completion: &Completion<Lease>) -> bool {
    matches!(completion, Completion::Woken)
}

#[test]
fn no_poll_is_lost_when_the_completion_queue_overflows() {
    let (mut uring, _bells) = Uring::small();
    let mut pairs = pairs();
    for round in 1..=3 {
        for (number, (ours, theirs)) in pairs.iter_mut().enumerate() {
            let (socket, token) = (socket_of(ours), token_of(number));
            uring.submit(Operation::PollReadable { socket, token });
            theirs.write_all(b"x").expect("it has room");
        }
        let completions = uring.await_completions(PAIRS);
        assert_eq!(numbers(&completions, readable), all(), "round {round}");
        uring.check_quiet();
        for (ours, _) in &mut pairs {
            assert_eq!(ours.read(&mut [0; 8]).expect("a byte"), 1);
        }
    }
    assert!(uring.pressure().overflows > 0, "this would not show what it is to show");
}

#[test]
fn no_send_or_receive_is_lost_when_the_completion_queue_overflows() {
    let (mut uring, _bells) = Uring::small();
    let mut pairs = pairs();
    for (ours, theirs) in &mut pairs {
        ours.set_nonblocking(true).expect("a socket");
        while ours.write(&[0; 4096]).is_ok() {}
        theirs.write_all(b"x").expect("that way there is room");
    }
    let bytes = Bytes::from_static(b"no room for it");
    for (number, (ours, _)) in pairs.iter().enumerate() {
        let (socket, token) = (socket_of(ours), token_of(number));
        uring.submit(Operation::Send { socket, token, bytes: &bytes, from: 0 });
    }
    assert_eq!(numbers(&uring.await_completions(PAIRS), short), all());
    uring.check_quiet();

    let all_numbers: Vec<usize> = (0..PAIRS).collect();
    for some in all_numbers.chunks(RECEIVES_MAX) {
        for &number in some {
            let (socket, token) = (socket_of(&pairs[number].0), token_of(number));
            uring.submit(Operation::Receive { socket, token });
        }
        assert_eq!(uring.receives_left(), RECEIVES_MAX - some.len());
        let mut received = Vec::new();
        for completion in uring.await_completions(some.len()) {
            match completion {
                Completion::Received(token, Ok(lease)) if &*lease == b"x" => {
                    received.push(token.number() as usize);
                }
                other => panic!("{other:?}"),
            }
        }
        received.sort_unstable();
        assert_eq!(received, some);
        assert_eq!(uring.receives_left(), RECEIVES_MAX, "every buffer is back");
    }
    uring.check_quiet();
    assert!(uring.pressure().overflows > 0, "this would not show what it is to show");
}

/// The kernel ends a multishot poll that finds the completion queue full. Whoever rings then, and
/// whoever rings later, is heard.
#[test]
fn no_ring_of_the_bell_is_lost_when_the_completion_queue_overflows() {
    let (mut uring, bells) = Uring::small();
    let mut pairs = pairs();
    let mut heard = 0;
    for round in 1..=ROUNDS {
        for (number, (ours, theirs)) in pairs.iter_mut().enumerate() {
            // The bell in between.
            if number == PAIRS / 2 {
                bells.ring(0);
            }
            let (socket, token) = (socket_of(ours), token_of(number));
            uring.submit(Operation::PollReadable { socket, token });
            theirs.write_all(b"x").expect("it has room");
        }
        // It is heard once or more: a poll that is armed anew finds the counter above zero.
        let mut completions = uring.await_completions(PAIRS + 1);
        while uring.reap_some(&mut completions) {}
        assert_eq!(numbers(&completions, readable), all(), "round {round}");
        let woken = completions.len() - PAIRS;
        assert!(woken > 0 && completions.iter().filter(|it| is_woken(it)).count() == woken);
        heard += woken;
        for (ours, _) in &mut pairs {
            assert_eq!(ours.read(&mut [0; 8]).expect("a byte"), 1);
        }
        bells.ring(0);
        let rung = uring.await_completions(1);
        assert!(matches!(rung[..], [Completion::Woken]), "round {round}: {rung:?}");
        uring.check_quiet();
    }
    println!("heard {heard} times in {ROUNDS} rounds");
    assert!(heard > ROUNDS, "its poll was never ended: this would not show what it is to show");
    assert!(uring.pressure().overflows > 0, "nor was the queue ever full");
}

/// The last completion of the bell's poll: it is watched again, and heard again.
#[test]
fn a_bell_whose_poll_has_ended_is_watched_again() {
    let (bells, _) = Bells::new(1).expect("descriptors");
    let mut uring = Uring::new(bells.clone(), 0).expect("a kernel with io_uring");
    bells.ring(0);
    assert!(matches!(uring.await_completions(1)[..], [Completion::Woken]));
    // As the kernel would end it, but from our side.
    let cancel = opcode::AsyncCancel::new(user_data(kind::BELL, 0)).build();
    uring.push(cancel.user_data(user_data(kind::CANCEL, 0)));
    assert!(matches!(uring.await_completions(1)[..], [Completion::Woken]), "it looks");
    // The counter was never read: the new poll says so at once.
    assert!(matches!(uring.await_completions(1)[..], [Completion::Woken]));
    uring.check_quiet();
    bells.ring(0);
    assert!(matches!(uring.await_completions(1)[..], [Completion::Woken]), "it is heard");
    uring.check_quiet();
}

#[test]
fn a_kernel_that_wants_completions_taken_out_is_obeyed_and_none_is_lost() {
    for errno in [libc::EBUSY, libc::EAGAIN, libc::ENOMEM] {
        let (bells, _) = Bells::new(1).expect("descriptors");
        let mut uring = Uring::new(bells, 0).expect("a kernel with io_uring");
        let mut pairs = pairs();
        let mut poll = |uring: &mut Uring, numbers: std::ops::Range<usize>| {
            for number in numbers {
                let (ours, theirs) = &mut pairs[number];
                theirs.write_all(b"x").expect("it has room");
                let (socket, token) = (socket_of(ours), token_of(number));
                uring.submit(Operation::PollReadable { socket, token });
            }
            uring.enter(Wait::No);
        };
        poll(&mut uring, 0..5);
        let came = uring.ring.completion().len();
        assert_eq!(came, 5);
        uring.check(Err(io::Error::from_raw_os_error(errno)));
        assert_eq!((uring.overflow.len(), uring.ring.completion().len()), (5, 0), "taken out");
        poll(&mut uring, 5..9);
        // What was taken out counts: nobody waits.
        uring.enter(Wait::Forever);
        let mut completions = Vec::new();
        uring.reap(&mut completions);
        let order: Vec<u64> =
            completions.iter().filter_map(readable).map(|token| token.number()).collect();
        assert_eq!(order, (0..9).collect::<Vec<_>>(), "in the order in which they came");
    }
}

#[test]
fn a_signal_and_a_timeout_are_no_errors() {
    let (bells, _) = Bells::new(1).expect("descriptors");
    let mut uring = Uring::new(bells, 0).expect("a kernel with io_uring");
    for errno in [libc::EINTR, libc::ETIME] {
        uring.check(Err(io::Error::from_raw_os_error(errno)));
        uring.check_quiet();
    }
    uring.enter(Wait::Until(Instant::now()));
    uring.check_quiet();
}

#[test]
#[should_panic(expected = "io_uring_enter failed")]
fn another_error_is_a_bug_of_ours() {
    let (bells, _) = Bells::new(1).expect("descriptors");
    let mut uring = Uring::new(bells, 0).expect("a kernel with io_uring");
    uring.check(Err(io::Error::from_raw_os_error(libc::EBADF)));
}
