//! What the names in a query mean.

use std::collections::{BTreeMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use crate::fragment::{ClassFragment, PatternFragment};
use crate::{
    Class, Error, ErrorKind, ExtensionError, NameFragment, Selector, lexer, parser, suggest,
};

/// The classes that `[cls:...]` may name, and the extensions that may stand in `[...:...]`.
///
/// A context is a value: cheap to clone, passed explicitly, and changed by nobody else. A new one knows no class and the
/// extensions `re`, `regex`, `cls`, `class` and `name`.
///
/// ```
/// use mpath::{Class, Context};
/// let linear = Class::define("Linear", "ff::nn::Linear", &[]);
/// let mut context = Context::new();
/// context.register_class("Linear", linear);
/// context.register_class("torch.nn.Linear", linear);
/// assert_eq!(context.query("**/[cls:torch.nn.Linear]")?.to_string(), "**/[cls:Linear]");
/// # Ok::<(), mpath::Error>(())
/// ```
#[derive(Clone)]
pub struct Context {
    classes: Arc<BTreeMap<Box<str>, Class>>,
    extensions: Arc<BTreeMap<Box<str>, Arc<dyn Extension>>>,
}

/// Makes a selector of the body of `[tag:body]`.
///
/// Closures of the same signature are extensions; [`Fragment`](crate::Fragment) shows one.
pub trait Extension: Send + Sync {
    /// The selector that the body stands for.
    ///
    /// The body is the text between the colon and the closing bracket, with white space and backslashes as written.
    ///
    /// # Errors
    /// Whatever is wrong with the body; the parser adds the place.
    fn build(&self, body: &str, context: &Context) -> Result<Selector, ExtensionError>;
}

impl<F> Extension for F
where
    F: Fn(&str, &Context) -> Result<Selector, ExtensionError> + Send + Sync,
{
    fn build(&self, body: &str, context: &Context) -> Result<Selector, ExtensionError> {
        self(body, context)
    }
}

impl Context {
    /// A context without classes, with the built-in extensions.
    pub fn new() -> Self {
        let mut extensions: BTreeMap<Box<str>, Arc<dyn Extension>> = BTreeMap::new();
        for tag in ["re", "regex"] {
            extensions.insert(tag.into(), Arc::new(build_pattern));
        }
        for tag in ["cls", "class"] {
            extensions.insert(tag.into(), Arc::new(build_class));
        }
        extensions.insert("name".into(), Arc::new(build_name));
        Context { classes: Arc::default(), extensions: Arc::new(extensions) }
    }

    /// Parses a query that uses no aliases.
    ///
    /// # Errors
    /// See [`Context::query_with`].
    pub fn query(&self, text: &str) -> Result<Selector, Error> {
        parser::parse(text, self, &Aliases::new())
    }

    /// Parses a query; `&name` stands for the alias of that name.
    ///
    /// # Errors
    /// If the text is no query, names an unknown class, extension or alias, gives an extension what it refuses, inverts
    /// more than a single fragment, or exceeds the [`limits`](crate::limits). The error points at the place.
    pub fn query_with(&self, text: &str, aliases: &Aliases) -> Result<Selector, Error> {
        parser::parse(text, self, aliases)
    }

    /// Gives a class one more name. Names may have dots. Returns the class that had the name before.
    pub fn register_class(&mut self, name: &str, class: Class) -> Option<Class> {
        Arc::make_mut(&mut self.classes).insert(name.into(), class)
    }

    /// The class of this name.
    pub fn class(&self, name: &str) -> Option<Class> {
        self.classes.get(name).copied()
    }

    /// The names of classes, sorted.
    pub fn class_names(&self) -> impl Iterator<Item = &str> {
        self.classes.keys().map(|name| &**name)
    }

    /// The tags of extensions, sorted.
    pub fn extension_tags(&self) -> impl Iterator<Item = &str> {
        self.extensions.keys().map(|tag| &**tag)
    }

    pub(crate) fn extension(&self, tag: &str) -> Option<&Arc<dyn Extension>> {
        self.extensions.get(tag)
    }

    /// Registers what `[tag:...]` means.
    ///
    /// # Errors
    /// [`ErrorKind::Duplicate`] if the tag is registered; [`ErrorKind::Syntax`] if it is no identifier.
    pub fn register_extension(
        &mut self,
        tag: &str,
        extension: impl Extension + 'static,
    ) -> Result<(), Error> {
        if self.extensions.contains_key(tag) {
            let message =
                format!("extension `{tag}` is already registered; override it to replace it");
            return Err(Error::new(ErrorKind::Duplicate, message));
        }
        self.override_extension(tag, extension).map(|_| ())
    }

    /// Registers what `[tag:...]` means, in place of what it meant before. Returns the latter.
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`] if the tag is no identifier.
    pub fn override_extension(
        &mut self,
        tag: &str,
        extension: impl Extension + 'static,
    ) -> Result<Option<Arc<dyn Extension>>, Error> {
        check_identifier("extension", tag)?;
        Ok(self.extensions_mut().insert(tag.into(), Arc::new(extension)))
    }

    /// Removes the meaning of `[tag:...]` and returns it.
    pub fn remove_extension(&mut self, tag: &str) -> Option<Arc<dyn Extension>> {
        self.extensions_mut().remove(tag)
    }

    /// Registers what `[tag:...]` means until the guard is dropped, which restores what it meant before.
    ///
    /// ```
    /// use mpath::{Context, Selector};
    /// let mut context = Context::new();
    /// let scope = context.scoped_extension("re", |body: &str, _: &Context| Ok(Selector::name(body)))?;
    /// assert_eq!(scope.query("[re:a.b]")?.to_string(), "[name:a.b]");
    /// drop(scope);
    /// assert_eq!(context.query("[re:a.b]")?.to_string(), "[re:a.b]");
    /// # Ok::<(), mpath::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`] if the tag is no identifier.
    pub fn scoped_extension(
        &mut self,
        tag: &str,
        extension: impl Extension + 'static,
    ) -> Result<ExtensionScope<'_>, Error> {
        let replaced = self.override_extension(tag, extension)?;
        Ok(ExtensionScope { context: self, tag: tag.into(), replaced })
    }

    fn extensions_mut(&mut self) -> &mut BTreeMap<Box<str>, Arc<dyn Extension>> {
        Arc::make_mut(&mut self.extensions)
    }
}

impl Default for Context {
    fn default() -> Self {
        Context::new()
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("classes", &self.classes)
            .field("extensions", &self.extension_tags().collect::<Vec<_>>())
            .finish()
    }
}

/// A context in which an extension is registered for a while: see [`Context::scoped_extension`].
pub struct ExtensionScope<'c> {
    context: &'c mut Context,
    tag: Box<str>,
    replaced: Option<Arc<dyn Extension>>,
}

impl ExtensionScope<'_> {
    /// Registers one more extension, for a shorter while.
    ///
    /// # Errors
    /// [`ErrorKind::Syntax`] if the tag is no identifier.
    pub fn scoped_extension(
        &mut self,
        tag: &str,
        extension: impl Extension + 'static,
    ) -> Result<ExtensionScope<'_>, Error> {
        self.context.scoped_extension(tag, extension)
    }
}

impl Deref for ExtensionScope<'_> {
    type Target = Context;
    fn deref(&self) -> &Context {
        self.context
    }
}

impl Drop for ExtensionScope<'_> {
    fn drop(&mut self) {
        let tag = std::mem::take(&mut self.tag);
        match self.replaced.take() {
            Some(extension) => self.context.extensions_mut().insert(tag, extension),
            None => self.context.extensions_mut().remove(&tag),
        };
    }
}

/// Named selectors, in order: what `&name` stands for.
///
/// ```
/// use mpath::{Aliases, Context};
/// let context = Context::new();
/// let aliases = Aliases::parse(&context, [("block", "layers/*"), ("up", "&block/mlp/up")])?;
/// let query = context.query_with("&up/weight", &aliases)?;
/// assert_eq!(query.to_string(), "layers/*/mlp/up/weight");
/// # Ok::<(), mpath::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Aliases(Vec<(Box<str>, Selector)>);

impl Aliases {
    /// No aliases.
    pub fn new() -> Self {
        Aliases::default()
    }

    /// Parses aliases in order; each may use those before it.
    ///
    /// # Errors
    /// The error of the first query that does not parse, with the name of the alias; or that of [`Aliases::define`].
    pub fn parse<'a>(
        context: &Context,
        definitions: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Error> {
        let mut aliases = Aliases::new();
        for (name, text) in definitions {
            let selector =
                context.query_with(text, &aliases).map_err(|error| error.in_alias(name))?;
            aliases.define(name, selector)?;
        }
        Ok(aliases)
    }

    /// Adds an alias.
    ///
    /// # Errors
    /// [`ErrorKind::Duplicate`] if there is one of that name; [`ErrorKind::Syntax`] if the name is no identifier.
    pub fn define(&mut self, name: &str, selector: Selector) -> Result<(), Error> {
        check_identifier("alias", name)?;
        if self.get(name).is_some() {
            let message = format!("alias `{name}` is defined twice");
            return Err(Error::new(ErrorKind::Duplicate, message));
        }
        self.0.push((name.into(), selector));
        Ok(())
    }

    /// The selector of this name.
    pub fn get(&self, name: &str) -> Option<&Selector> {
        self.0.iter().find(|(known, _)| **known == *name).map(|(_, selector)| selector)
    }

    /// The names and selectors, in order of definition.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Selector)> {
        self.0.iter().map(|(name, selector)| (&**name, selector))
    }
}

fn check_identifier(what: &str, name: &str) -> Result<(), Error> {
    if lexer::is_name(name) && !name.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(());
    }
    let message = format!("{what} `{name}` cannot be written in a query: expected an identifier");
    Err(Error::new(ErrorKind::Syntax, message))
}

fn build_pattern(body: &str, _: &Context) -> Result<Selector, ExtensionError> {
    PatternFragment::from_body(body).map(Selector::from_fragment)
}

fn build_class(body: &str, context: &Context) -> Result<Selector, ExtensionError> {
    match context.class(body) {
        Some(class) => Ok(Selector::from_fragment(ClassFragment::written(class, body, context))),
        None => {
            // Of the names of one class the nearest is enough.
            let mut near = suggest::ranked(body, context.class_names());
            let mut classes = HashSet::new();
            near.retain(|name| classes.insert(context.class(name)));
            let error = ExtensionError::new(format!("unknown class `{body}`"))
                .kind(ErrorKind::UnknownClass)
                .suggesting(body, near);
            Err(if context.class(body.trim()).is_some() {
                error.note("white space is part of the name")
            } else {
                error
            })
        }
    }
}

fn build_name(body: &str, _: &Context) -> Result<Selector, ExtensionError> {
    NameFragment::from_body(body).map(Selector::from_fragment).map_err(ExtensionError::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(name: &'static str) -> impl Extension + 'static {
        move |_: &str, _: &Context| Ok(Selector::name(name))
    }

    #[test]
    fn a_tag_is_registered_once_unless_overridden() {
        let mut context = Context::new();
        context.register_extension("x", constant("one")).unwrap();
        let error = context.register_extension("x", constant("two")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Duplicate);
        assert_eq!(context.query("[x:]").unwrap().to_string(), "one");
        assert!(context.override_extension("x", constant("two")).unwrap().is_some());
        assert_eq!(context.query("[x:]").unwrap().to_string(), "two");
        assert!(context.register_extension("not-one", constant("x")).is_err());
    }

    #[test]
    fn scopes_nest_and_restore() {
        let mut context = Context::new();
        let before = context.clone();
        {
            let mut outer = context.scoped_extension("x", constant("outer")).unwrap();
            {
                let inner = outer.scoped_extension("x", constant("inner")).unwrap();
                assert_eq!(inner.query("[x:]").unwrap().to_string(), "inner");
            }
            assert_eq!(outer.query("[x:]").unwrap().to_string(), "outer");
            assert!(before.query("[x:]").is_err(), "a clone is another context");
        }
        assert_eq!(context.query("[x:]").unwrap_err().kind(), ErrorKind::UnknownExtension);
    }

    #[test]
    fn aliases_see_those_before_them() {
        let context = Context::new();
        let aliases = Aliases::parse(&context, [("a", "x"), ("b", "&a/y")]).unwrap();
        assert_eq!(aliases.get("b").unwrap().to_string(), "x/y");
        let error = Aliases::parse(&context, [("b", "&a/y"), ("a", "x")]).unwrap_err();
        assert_eq!((error.kind(), error.alias()), (ErrorKind::UnknownAlias, Some("b")));
        let error = Aliases::parse(&context, [("a", "x"), ("a", "y")]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Duplicate);
    }

    #[test]
    fn ambiguous_short_names_are_printed_as_written() {
        let ours = Class::define("Linear", "context_test::ours", &[]);
        let other = Class::define("Linear", "context_test::other", &[]);
        let mut context = Context::new();
        context.register_class("Linear", ours);
        context.register_class("other.Linear", other);
        let printed = |text| context.query(text).unwrap().to_string();
        assert_eq!(printed("[class:Linear]"), "[cls:Linear]");
        assert_eq!(printed("[class:other.Linear]"), "[cls:other.Linear]");
    }
}
