//! The nearest known names to an unknown one: the "did you mean" of error messages.
//!
//! ```
//! use mpath::suggest;
//! let known = ["q_proj", "k_proj", "v_proj", "o_proj", "gate"];
//! assert_eq!(suggest::nearest("q_porj", known), Some("q_proj"));
//! assert_eq!(suggest::nearest("attention", known), None);
//! ```

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    ranked(word, candidates).into_iter().next()
}

/// The candidates near enough to `word`, nearest first, equally near ones in alphabetical order.
///
/// Near enough is one edit for short words and one more per three letters of the longer word. A candidate whose last
/// `.`- or `/`-separated part is the word, or of which the word is the last part, is one edit away: `Linear` for
/// `torch.nn.Linear`.
pub fn ranked<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(usize, &str)> = Vec::new();
    for candidate in candidates {
        let longest = word.chars().count().max(candidate.chars().count());
        // Comparing very long names costs the product of their lengths and helps nobody.
        if longest > 256 {
            continue;
        }
        let mut distance = distance(word, candidate);
        if last_part(word) == last_part(candidate) && !last_part(word).is_empty() {
            distance = distance.min(1);
        }
        if candidate != word && distance <= 1 + longest / 3 && distance < longest {
            near.push((distance, candidate));
        }
    }
    near.sort_unstable();
    near.dedup();
    near.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The number of single-letter edits (insert, delete, replace, swap neighbours) between two words.
///
/// A letter in the other case counts as the same letter, unless that is the only difference.
///
/// ```
/// assert_eq!(mpath::suggest::distance("conv", "Conv"), 1);
/// assert_eq!(mpath::suggest::distance("wieght", "weight"), 1);
/// assert_eq!(mpath::suggest::distance("", "abc"), 3);
/// ```
pub fn distance(a: &str, b: &str) -> usize {
    let fold = |s: &str| s.chars().flat_map(char::to_lowercase).collect::<Vec<char>>();
    let (x, y) = (fold(a), fold(b));
    // Three rows of the table of edits between all prefixes: two back, one back, current.
    let mut before: Vec<usize> = vec![0; y.len() + 1];
    let mut last: Vec<usize> = (0..=y.len()).collect();
    let mut row: Vec<usize> = vec![0; y.len() + 1];
    for i in 1..=x.len() {
        row[0] = i;
        for j in 1..=y.len() {
            let replace = last[j - 1] + usize::from(x[i - 1] != y[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        std::mem::swap(&mut before, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    match last[y.len()] {
        0 => usize::from(a != b),
        edits => edits,
    }
}

fn last_part(name: &str) -> &str {
    name.rsplit(['.', '/', ':']).next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_first_then_alphabetical() {
        assert_eq!(ranked("norm", ["norm2", "norm1", "form", "head"]), ["form", "norm1", "norm2"]);
    }

    #[test]
    fn the_word_itself_is_no_suggestion() {
        assert_eq!(nearest("a", ["a"]), None);
    }

    #[test]
    fn qualified_names_are_found_by_their_last_part() {
        assert_eq!(nearest("ff.nn.Linear", ["Conv2d", "torch.nn.Linear"]), Some("torch.nn.Linear"));
    }

    #[test]
    fn one_letter_words_have_no_random_neighbours() {
        assert_eq!(nearest("x", ["a", "b"]), None);
    }
}
