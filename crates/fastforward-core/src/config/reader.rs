//! Typed access to the keys of a TOML table that remembers everything that is wrong.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use mpath::suggest::nearest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Problem;

/// Every problem found so far.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    pub(super) fn add(
        &self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let problem = Problem { span, message: message.into(), help: help.into() };
        self.0.borrow_mut().push(problem);
    }

    pub(super) fn into_vec(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A value and its place.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table of which the keys are known. Keys that are not are reported when it is made.
pub(super) struct Fields<'a, 't> {
    table: &'a DeTable<'t>,
    /// Where a missing key is reported.
    pub(super) span: Range<usize>,
    /// As messages name it: `[[rule]]`.
    pub(super) place: String,
    pub(super) problems: &'a Problems,
}

impl<'a, 't> Fields<'a, 't> {
    pub(super) fn new(
        table: &'a DeTable<'t>,
        span: Range<usize>,
        place: impl Into<String>,
        known: &[&str],
        problems: &'a Problems,
    ) -> Self {
        let place = place.into();
        for key in table.keys() {
            if !known.contains(&key.get_ref().as_ref()) {
                report_unknown(problems, key.span(), "key", key.get_ref(), &place, known);
            }
        }
        Self { table, span, place, problems }
    }

    /// A value that is a table, or a problem.
    pub(super) fn of_value(
        value: &'a Value<'t>,
        place: impl Into<String>,
        known: &[&str],
        problems: &'a Problems,
    ) -> Option<Self> {
        let place = place.into();
        match value.get_ref() {
            DeValue::Table(table) => Some(Self::new(table, value.span(), place, known, problems)),
            other => {
                wrong_type(problems, value.span(), &place, "a table", other);
                None
            }
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value<'t>> {
        self.table.get(key)
    }

    /// Reports a missing key.
    pub(super) fn require(&self, key: &str, example: &str) {
        if self.get(key).is_none() {
            let message = format!("{} has no `{key}`", self.place);
            self.problems.add(self.span.clone(), message, format!("add `{key} = {example}`"));
        }
    }

    pub(super) fn table(&self, key: &str, place: &str, known: &[&str]) -> Option<Fields<'a, 't>> {
        Fields::of_value(self.get(key)?, place, known, self.problems)
    }

    pub(super) fn string(&self, key: &str) -> Option<&'a str> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            other => self.wrong(key, value, "a string", other),
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            other => self.wrong(key, value, "true or false", other),
        }
    }

    pub(super) fn integer(&self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let value = self.get(key)?;
        if !value.get_ref().is_integer() {
            return self.wrong(key, value, "an integer", value.get_ref());
        }
        match integer(value.get_ref()).filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => {
                let message = format!("`{key}` must be {}", shown_range(&range));
                self.problems.add(value.span(), message, "");
                None
            }
        }
    }

    /// A count: an integer that is not negative.
    pub(super) fn count(&self, key: &str, least: usize) -> Option<usize> {
        let least = i64::try_from(least).unwrap_or(i64::MAX);
        self.integer(key, least..=i64::MAX).and_then(|count| usize::try_from(count).ok())
    }

    /// A finite number for which `fits` holds; `expected` says what that is.
    pub(super) fn number(
        &self,
        key: &str,
        expected: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Option<f64> {
        let value = self.get(key)?;
        let Some(number) = number(value.get_ref()) else {
            return self.wrong(key, value, "a number", value.get_ref());
        };
        if number.is_finite() && fits(number) {
            return Some(number);
        }
        self.problems.add(value.span(), format!("`{key}` must be {expected}"), "");
        None
    }

    /// One number or several.
    pub(super) fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        let value = self.get(key)?;
        let all = match value.get_ref() {
            DeValue::Array(array) => array.iter().map(|item| number(item.get_ref())).collect(),
            other => number(other).map(|number| vec![number]),
        };
        match all {
            Some(numbers) if numbers.iter().all(|number: &f64| number.is_finite()) => Some(numbers),
            Some(_) => {
                self.problems.add(value.span(), format!("`{key}` must be finite"), "");
                None
            }
            None => self.wrong(key, value, "a number or a list of numbers", value.get_ref()),
        }
    }

    /// A list of integers that fit `T`; `expected` says what that is.
    pub(super) fn integers<T: TryFrom<i64>>(&self, key: &str, expected: &str) -> Option<Vec<T>> {
        integers(self.get(key)?, &format!("`{key}`"), expected, self.problems)
    }

    /// One of some names.
    pub(super) fn one_of<T: Copy>(&self, key: &str, names: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let value = self.get(key)?;
        match names.iter().find(|(name, _)| *name == text) {
            Some((_, meaning)) => Some(*meaning),
            None => {
                let known: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
                report_unknown(self.problems, value.span(), key, text, &self.place, &known);
                None
            }
        }
    }

    /// The bytes of a value, or of the table when it has none.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    fn wrong<T>(
        &self,
        key: &str,
        value: &Value<'_>,
        expected: &str,
        found: &DeValue<'_>,
    ) -> Option<T> {
        wrong_type(self.problems, value.span(), &format!("`{key}`"), expected, found);
        None
    }
}

/// The keys and values of a table in the order of the text.
pub(super) fn entries<'a, 't>(
    table: &'a DeTable<'t>,
) -> Vec<(&'a Spanned<std::borrow::Cow<'t, str>>, &'a Value<'t>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// A list of integers that fit `T`, or a problem.
pub(super) fn integers<T: TryFrom<i64>>(
    value: &Value<'_>,
    place: &str,
    expected: &str,
    problems: &Problems,
) -> Option<Vec<T>> {
    let DeValue::Array(array) = value.get_ref() else {
        wrong_type(problems, value.span(), place, expected, value.get_ref());
        return None;
    };
    let mut all = vec![];
    for item in array {
        match integer(item.get_ref()).and_then(|number| T::try_from(number).ok()) {
            Some(number) => all.push(number),
            None => {
                problems.add(item.span(), format!("{place} must be {expected}"), "");
                return None;
            }
        }
    }
    Some(all)
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(_) => integer(value).map(|number| number as f64),
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => None,
    }
}

/// A value of the wrong type.
pub(super) fn wrong_type(
    problems: &Problems,
    span: Range<usize>,
    place: &str,
    expected: &str,
    found: &DeValue<'_>,
) {
    let found = match found {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    problems.add(span, format!("{place} must be {expected}, found {found}"), "");
}

/// A name that none of the known ones is: a key, or the value of a key.
pub(super) fn report_unknown(
    problems: &Problems,
    span: Range<usize>,
    what: &str,
    found: &str,
    place: &str,
    known: &[&str],
) {
    let help = match nearest(found, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
            format!("known are {}", names.join(", "))
        }
    };
    problems.add(span, format!("unknown {what} `{found}` in {place}"), help);
}

fn shown_range(range: &RangeInclusive<i64>) -> String {
    match (*range.start(), *range.end()) {
        (low, i64::MAX) => format!("at least {low}"),
        (low, high) => format!("{low} to {high}"),
    }
}
