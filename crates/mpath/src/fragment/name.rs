use std::fmt;

use super::{DependsOn, Fragment};
use crate::Facts;
use crate::lexer::is_name;

/// `name`, or `[name:...]` for names that the grammar has no plain form for: the child of exactly this name.
///
/// In the brackets, `\]` is a bracket, `\\` a backslash, and `\u{22}` the character of that hexadecimal number;
/// printing uses the latter for quotes and control characters.
///
/// ```
/// use mpath::{Context, NameFragment};
/// assert_eq!(NameFragment::new("q_proj").to_string(), "q_proj");
/// assert_eq!(NameFragment::new("layer.0").to_string(), "[name:layer.0]");
/// let query = Context::new().query(r"[name:layer.0]/[name:a\]b]")?;
/// assert_eq!(query.to_string(), r"[name:layer.0]/[name:a\]b]");
/// # Ok::<(), mpath::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NameFragment(Box<str>);

impl NameFragment {
    /// The child of exactly this name.
    pub fn new(name: &str) -> Self {
        NameFragment(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The name written in the body of `[name:...]`, or a message.
    pub(crate) fn from_body(body: &str) -> Result<Self, &'static str> {
        let mut name = String::with_capacity(body.len());
        let mut rest = body.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                name.push(c);
                continue;
            }
            match rest.next() {
                Some(escaped @ ('\\' | '[' | ']' | '"')) => name.push(escaped),
                Some('u') => {
                    let digits = rest
                        .as_str()
                        .strip_prefix('{')
                        .and_then(|rest| rest.split_once('}'))
                        .map(|(digits, _)| digits)
                        .filter(|digits| (1..=6).contains(&digits.len()))
                        .ok_or("expected one to six hexadecimal digits in braces after `\\u`")?;
                    let number = u32::from_str_radix(digits, 16)
                        .map_err(|_| "expected hexadecimal digits in `\\u{...}`")?;
                    name.push(char::from_u32(number).ok_or("`\\u{...}` names no character")?);
                    // The digits are ASCII: as many characters as bytes, and two braces.
                    rest.nth(digits.len() + 1);
                }
                _ => return Err("expected `\\`, `[`, `]`, `\"` or `u{...}` after `\\`"),
            }
        }
        Ok(NameFragment(name.into()))
    }
}

impl Fragment for NameFragment {
    fn matches(&self, name: &str, _: &dyn Facts) -> bool {
        *self.0 == *name
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::Name
    }

    fn alternatives(&self, name: &str, _: &dyn Facts) -> Vec<String> {
        vec![NameFragment::new(name).to_string()]
    }
}

impl fmt::Display for NameFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_name(&self.0) {
            return f.write_str(&self.0);
        }
        f.write_str("[name:")?;
        for c in self.0.chars() {
            match c {
                '\\' | ']' => write!(f, "\\{c}")?,
                '"' => f.write_str("\\u{22}")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("]")
    }
}
