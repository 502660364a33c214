use std::fmt;

use super::{DependsOn, Fragment};
use crate::lexer::is_plain_body;
use crate::{Class, Context, Facts};

/// `[cls:NAME]`: nodes of a class, or of one that extends it.
///
/// Equal for equal classes, however they were named.
#[derive(Clone, Debug)]
pub struct ClassFragment {
    class: Class,
    text: Box<str>,
}

impl ClassFragment {
    /// The nodes of this class. Prints its short name.
    pub fn new(class: Class) -> Self {
        ClassFragment { class, text: class.name().into() }
    }

    /// The nodes of the class that `written` names in `context`. Prints the short name of the class if that means the
    /// same class in the context, else what was written.
    pub(crate) fn written(class: Class, written: &str, context: &Context) -> Self {
        let short_is_unambiguous =
            context.class(class.name()) == Some(class) && is_plain_body(class.name());
        let text = if short_is_unambiguous { class.name() } else { written };
        ClassFragment { class, text: text.into() }
    }

    /// The class.
    pub fn class(&self) -> Class {
        self.class
    }
}

impl Fragment for ClassFragment {
    fn matches(&self, _: &str, node: &dyn Facts) -> bool {
        node.class().is_a(self.class)
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::ClassAndTags
    }

    fn key(&self) -> String {
        self.class.id().to_string()
    }

    fn alternatives(&self, _: &str, node: &dyn Facts) -> Vec<String> {
        vec![ClassFragment::new(node.class()).to_string()]
    }
}

impl fmt::Display for ClassFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[cls:{}]", self.text)
    }
}
