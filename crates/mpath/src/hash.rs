//! A fast hash for small keys that come from inside the program.

use std::hash::{BuildHasherDefault, Hasher};

pub(crate) type FastMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Multiplies and rotates word by word. Not resistant to chosen keys: a tree whose names collide on purpose walks
/// slower, within the bounds on its size.
#[derive(Default, Clone, Copy)]
pub(crate) struct FastHasher(u64);

/// An odd constant with a balanced bit pattern: the golden ratio scaled to 64 bits.
pub(crate) const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl FastHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    }
}

/// The first eight bytes as a number.
fn word_at(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |&word| u64::from_le_bytes(word))
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Words of eight bytes, the last of which may overlap the one before; fewer bytes are put in one word.
        let len = bytes.len();
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(word_at(word));
        }
        match words.remainder() {
            [] => {}
            _ if len >= 8 => self.add(word_at(&bytes[len - 8..])),
            rest => self.add(rest.iter().fold(0, |word, &byte| word << 8 | u64::from(byte))),
        }
        self.add(len as u64);
    }

    fn write_u8(&mut self, value: u8) {
        self.add(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.add(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.add(value);
    }

    fn write_usize(&mut self, value: usize) {
        self.add(value as u64);
    }

    fn finish(&self) -> u64 {
        // The table takes its index from the low bits, which a multiplication mixes least.
        self.0 ^ self.0 >> 32
    }
}
