//! Codes in 32-bit words.

use crate::placement::SomeCodes;

/// Packs codes along the columns into words, each row beginning a new one.
pub(super) struct Words {
    columns: usize,
    bits: u32,
    column: usize,
    word: u32,
    /// Whole words that nobody took yet.
    pub(super) bytes: Vec<u8>,
}

impl Words {
    pub(super) fn new(columns: usize, bits: u32) -> Self {
        Self { columns, bits, column: 0, word: 0, bytes: Vec::new() }
    }

    pub(super) fn push(&mut self, codes: SomeCodes<'_>) {
        match codes {
            SomeCodes::I8(codes) => self.push_narrow(codes),
            SomeCodes::I32(codes) => {
                // Codes of at most 8 bits, whatever they come in.
                let codes: Vec<i8> = codes.iter().map(|&code| code as i8).collect();
                self.push_narrow(&codes);
            }
        }
    }

    fn push_narrow(&mut self, codes: &[i8]) {
        let per_word = 32 / self.bits as usize;
        let starts_word = self.column.is_multiple_of(per_word);
        if self.columns.is_multiple_of(per_word) && starts_word {
            // No word is cut by the end of a row.
            let whole = codes.len() - codes.len() % per_word;
            self.whole_words(&codes[..whole]);
            self.column = (self.column + whole) % self.columns;
            return self.push_each(&codes[whole..]);
        }
        self.push_each(codes);
    }

    fn whole_words(&mut self, codes: &[i8]) {
        match self.bits {
            8 => self.bytes.extend(codes.iter().map(|&code| code as u8 ^ 0x80)),
            4 => self.bytes.extend(
                codes
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|&[low, high]| ((low as u8 ^ 8) & 15) | ((high as u8 ^ 8) << 4)),
            ),
            _ => self.bytes.extend(codes.as_chunks::<4>().0.iter().map(|codes| {
                let two = |at: usize| ((codes[at] as u8 ^ 2) & 3) << (2 * at);
                two(0) | two(1) | two(2) | two(3)
            })),
        }
    }

    fn push_each(&mut self, codes: &[i8]) {
        let per_word = 32 / self.bits as usize;
        for &code in codes {
            let shifted = (i32::from(code) + (1 << (self.bits - 1))) as u32;
            self.word |= shifted << (self.column % per_word * self.bits as usize);
            self.column += 1;
            if self.column == self.columns || self.column.is_multiple_of(per_word) {
                self.bytes.extend_from_slice(&self.word.to_le_bytes());
                self.word = 0;
            }
            if self.column == self.columns {
                self.column = 0;
            }
        }
    }
}

/// Packs codes in rows of `columns` along the rows, and gives one row of words at a time: word `r` of a column holds its codes
/// from row `r * 32 / bits` on, the first in the lowest bits, each `2^(bits - 1)` higher.
pub(super) fn pack_rows(
    code: impl Fn(usize) -> i32,
    [rows, columns]: [usize; 2],
    bits: u32,
) -> impl Iterator<Item = Vec<u8>> {
    let per_word = 32 / bits as usize;
    (0..rows).step_by(per_word).map(move |first| {
        let mut words = vec![0u32; columns];
        for row in first..rows.min(first + per_word) {
            for (column, word) in words.iter_mut().enumerate() {
                let shifted = (code(row * columns + column) + (1 << (bits - 1))) as u32;
                *word |= shifted << ((row - first) * bits as usize);
            }
        }
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    })
}

/// A code in a word.
pub(super) fn unpack(word: u32, at: usize, bits: u32) -> i32 {
    let code = word >> (at * bits as usize) & ((1 << bits) - 1);
    code as i32 - (1 << (bits - 1))
}

#[cfg(test)]
mod tests {
    use super::super::BITS;
    use super::*;

    #[test]
    fn words_hold_codes_from_their_lowest_bits_on() {
        // -8 is 0, 7 is 15, 0 is 8; the second row begins a word.
        let codes: [i8; 18] = [-8, 7, 0, 1, -1, 2, -2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, -3];
        let expected = [0xb6a7_98f0u32, 0x0000_000c, 0x8888_8888, 0x0000_0005];
        let expected: Vec<u8> = expected.into_iter().flat_map(u32::to_le_bytes).collect();
        for piece in [1, 2, 5, 9, 18] {
            let mut words = Words::new(9, 4);
            codes.chunks(piece).for_each(|codes| words.push(SomeCodes::I8(codes)));
            assert_eq!(words.bytes, expected);
        }
    }

    #[test]
    fn rows_of_whole_words_are_packed_alike() {
        for bits in BITS {
            let half = 1i32 << (bits - 1);
            let codes: Vec<i8> = (0..96).map(|at| (at * 7 % (2 * half) - half) as i8).collect();
            let mut fast = Words::new(32, bits);
            fast.push(SomeCodes::I8(&codes));
            let mut slow = Words::new(32, bits);
            slow.push_each(&codes);
            assert_eq!(fast.bytes, slow.bytes, "{bits} bits");
            let per_word = 32 / bits as usize;
            for (at, &code) in codes.iter().enumerate() {
                let word = u32::from_le_bytes(fast.bytes.as_chunks::<4>().0[at / per_word]);
                assert_eq!(unpack(word, at % per_word, bits), i32::from(code));
            }
        }
    }

    #[test]
    fn zero_points_are_packed_along_the_rows() {
        // Three rows of two columns.
        let codes = [-8, 7, 0, 1, -1, 2];
        let bytes: Vec<u8> = pack_rows(|at| codes[at], [3, 2], 4).flatten().collect();
        let words: Vec<u32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        assert_eq!(words, [0x0000_0780, 0x0000_0a9f]);
        // Ten rows of one column: two words.
        let bytes: Vec<u8> = pack_rows(|at| at as i32 - 5, [10, 1], 4).flatten().collect();
        assert_eq!(bytes, [0x43, 0x65, 0x87, 0xa9, 0xcb, 0x00, 0x00, 0x00]);
    }
}
