//! Damaged files, and mistakes of one letter.

use super::reading::WHOLE;
use super::*;

/// Every truncation and every changed byte is read or refused, never a panic.
#[test]
fn damaged_files_never_panic() {
    for cut in 0..WHOLE.len() {
        let _ = parse(&WHOLE[..cut]);
    }
    for at in 0..WHOLE.len() {
        for replacement in ["\"", "[", "=", "\n", "é", "0", "-", "{"] {
            let mut text = WHOLE.to_owned();
            text.replace_range(at..at + 1, replacement);
            let _ = parse(&text).map_err(|error| error.to_string());
        }
    }
}

/// The configurations that the quick start uses: they are read, and their data fits the models' inputs.
#[test]
fn the_examples_fit_their_data() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for (file, sample, counts) in [
        ("fashion/w8a8.toml", [1, 28, 28], (512, 2000)),
        ("fashion/w4a8.toml", [1, 28, 28], (512, 2000)),
        ("fashion/w3a8.toml", [1, 28, 28], (512, 2000)),
        ("digits/w8a8.toml", [1, 8, 8], (512, 500)),
    ] {
        let config = QuantConfigFile::load(&examples.join(file)).unwrap_or_else(|e| panic!("{e}"));
        let shape = [None].into_iter().chain(sample.map(Some)).collect();
        let input =
            ModelInput { name: "image".to_owned(), dtype: InputType::F32, shape: Some(shape) };
        let open = |data| Dataset::open(data, &config.inputs, std::slice::from_ref(&input));
        let calibration = open(&config.calibration.as_ref().unwrap().data).unwrap();
        let evaluation = open(&config.evaluation.as_ref().unwrap().data).unwrap();
        assert_eq!((calibration.num_samples(), evaluation.num_samples()), counts, "{file}");
        assert!(evaluation.labels().is_some_and(|labels| labels.iter().all(|&label| label < 10)));
        let batch = evaluation.batches(50).next().unwrap().unwrap();
        let ArrayData::Float(values) = &batch.inputs[0].data else { panic!("{batch:?}") };
        let largest = values.iter().fold(0f32, |most, &value| most.max(value));
        assert_eq!(largest, 1.0, "{file}");
    }
}

/// Any word of a rule with a letter missing, changed or swapped is refused with the right word. Queries are checked
/// where they are parsed; names and comments are free.
#[test]
fn one_letter_mistakes_in_a_rule_are_corrected() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    for file in ["fashion/w8a8.toml", "fashion/w4a8.toml", "fashion/w3a8.toml"] {
        let mistakes = try_slips(&std::fs::read_to_string(examples.join(file)).unwrap());
        assert!(mistakes > 500, "{file}: {mistakes}");
    }
}

/// Makes every slip in every word of the rules, and counts them.
#[track_caller]
fn try_slips(text: &str) -> usize {
    let mut mistakes = 0;
    let mut start = text.find("[[rule]]").unwrap();
    for line in text[start..].split_inclusive('\n') {
        let is_free = line.starts_with("name") || line.starts_with("query");
        let checked = line.split(if is_free { '=' } else { '#' }).next().unwrap();
        let words = checked.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_'));
        let mut at = start;
        for piece in words {
            let word = piece.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_'));
            if word.starts_with(|c: char| c.is_ascii_alphabetic()) {
                for letter in 0..word.len() {
                    for wrong in slips(word, letter) {
                        let mut text = text.to_owned();
                        text.replace_range(at..at + word.len(), &wrong);
                        let error = parse(&text).err();
                        let message = error.map_or_else(String::new, |error| error.to_string());
                        assert!(message.contains(&format!("`{word}`")), "{wrong}: {message}");
                        mistakes += 1;
                    }
                }
            }
            at += piece.len();
        }
        start += line.len();
    }
    mistakes
}

/// The word with one letter dropped, doubled, changed, or swapped with the next one.
fn slips(word: &str, at: usize) -> Vec<String> {
    let mut letters: Vec<char> = word.chars().collect();
    let mut slips = vec![];
    let mut add = |letters: &[char]| slips.push(letters.iter().collect::<String>());
    add(&[&letters[..at], &letters[at + 1..]].concat());
    add(&[&letters[..=at], &letters[at..]].concat());
    if at + 1 < letters.len() {
        letters.swap(at, at + 1);
        add(&letters);
        letters.swap(at, at + 1);
    }
    letters[at] = if letters[at] == 'x' { 'y' } else { 'x' };
    add(&letters);
    slips.retain(|slip| slip != word);
    slips
}
