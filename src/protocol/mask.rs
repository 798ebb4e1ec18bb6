//! Masking of client payloads (RFC 6455 §5.3).
//!
//! Masking and unmasking are the same XOR with a repeated key of four bytes. It is done in place,
//! in the receive buffer, and can go on at any offset of the payload, so a frame is unmasked as
//! its bytes arrive and never gathered for it.
//!
//! The inner loop works on eight bytes at a time over fixed-size chunks, which the compiler turns
//! into vector instructions; no `unsafe` and no alignment prologue is needed for that.

/// XORs `payload` with `key` in place (RFC 6455 §5.3).
///
/// `offset` is the place of `payload[0]` in the frame's payload: the key goes on where the
/// previous part ended. Cost: memory speed, no allocation.
pub fn unmask(payload: &mut [u8], key: [u8; 4], offset: usize) {
    let mut key = key;
    key.rotate_left(offset % 4);
    let [a, b, c, d] = key;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);

    let (chunks, tail) = payload.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(word.to_ne_bytes()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unmask_naive(payload: &mut [u8], key: [u8; 4], offset: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[(offset + i) % 4];
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 6455 §5.7: "Hello", masked.
        let mut payload = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        unmask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&payload, b"Hello");
    }

    proptest! {
        #[test]
        fn fast_equals_naive(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key: [u8; 4],
            offset in prop_oneof![0usize..16, Just(usize::MAX - 300)],
            start in 0usize..16,
        ) {
            let start = start.min(payload.len());
            let (mut fast, mut naive) = (payload.clone(), payload);
            unmask(&mut fast[start..], key, offset);
            unmask_naive(&mut naive[start..], key, offset);
            prop_assert_eq!(fast, naive);
        }

        #[test]
        fn parts_equal_the_whole(
            payload in proptest::collection::vec(any::<u8>(), 0..200),
            key: [u8; 4],
            at in 0usize..200,
        ) {
            let at = at.min(payload.len());
            let (mut whole, mut parts) = (payload.clone(), payload);
            unmask(&mut whole, key, 0);
            let (head, tail) = parts.split_at_mut(at);
            unmask(head, key, 0);
            unmask(tail, key, at);
            prop_assert_eq!(whole, parts);
        }
    }
}
