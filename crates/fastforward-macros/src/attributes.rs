//! `#[module(...)]`: parsed, each key where it belongs and once.

use proc_macro2::Span;
use quote::quote;
use syn::meta::ParseNestedMeta;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, ExprLit, Ident, Lit, LitStr, Path, Result, Token};

use crate::problems::Problems;

/// What stands in `#[module(...)]` on a type.
pub(crate) struct OnType {
    pub(crate) class: OwnClass,
    /// What describes a class of the type's own, and where the first of it is written.
    pub(crate) describes_class: Option<Span>,
    /// The crate that defines the trait.
    pub(crate) krate: Path,
}

/// The class of a type.
pub(crate) enum OwnClass {
    /// One of its own.
    New {
        /// The short name, if not the type's.
        name: Option<String>,
        /// Expressions that give the classes it extends.
        extends: Vec<Expr>,
    },
    /// An expression that gives one.
    Known(Expr),
}

/// What stands in `#[module(...)]` on a field.
#[derive(Default)]
pub(crate) struct OnField {
    /// Whether the field is left out.
    pub(crate) skip: bool,
    /// The child's name, if not the field's, and where it is written.
    pub(crate) rename: Option<(String, Span)>,
    /// Where it says that the field holds the aliases of the model.
    pub(crate) aliases: Option<Span>,
}

const TYPE_KEYS: [&str; 3] = ["class", "extends", "crate"];
const FIELD_KEYS: [&str; 3] = ["skip", "rename", "aliases"];

impl OnType {
    pub(crate) fn parse(attributes: &[Attribute]) -> Result<Self> {
        let mut class = None;
        let mut krate = None;
        let mut extends = Vec::new();
        let mut describes_class = None;
        each_key(attributes, "a type", &TYPE_KEYS, |key, meta| match key {
            "class" => {
                describes_class.get_or_insert(meta.path.span());
                let written = Class::parse(meta.value()?.parse()?)?;
                once(&mut class, written, meta.path.span(), key)
            }
            "extends" => {
                describes_class.get_or_insert(meta.path.span());
                let value = meta.value()?;
                if value.peek(syn::token::Bracket) {
                    let list;
                    syn::bracketed!(list in value);
                    extends.extend(Punctuated::<Expr, Token![,]>::parse_terminated(&list)?);
                } else {
                    extends.push(value.parse()?);
                }
                Ok(())
            }
            _ => {
                let path = meta.value()?.parse::<LitStr>()?.parse_with(Path::parse_mod_style)?;
                // `fastforward_core` means the crate of that name; `crate` and `self` mean themselves.
                let keyword = path.segments.first().is_some_and(|first| {
                    ["crate", "self", "super"].iter().any(|word| first.ident == word)
                });
                let absolute = match keyword || path.leading_colon.is_some() {
                    true => path,
                    false => syn::parse_quote!(::#path),
                };
                once(&mut krate, absolute, meta.path.span(), key)
            }
        })?;
        let class = match (class, extends) {
            (Some(Class::Known(_)), extends) if !extends.is_empty() => {
                let message = "a class given as an expression has its ancestors already: remove `extends`, or give the \
                               class a name, `class = \"Name\"`";
                return Err(Error::new(extends[0].span(), message));
            }
            (Some(Class::Known(class)), _) => OwnClass::Known(class),
            (Some(Class::Name(name)), extends) => OwnClass::New { name: Some(name), extends },
            (None, extends) => OwnClass::New { name: None, extends },
        };
        let krate = krate.unwrap_or_else(|| syn::parse_quote!(::fastforward));
        Ok(Self { class, describes_class, krate })
    }
}

/// What stands behind `class =`.
enum Class {
    Name(String),
    Known(Expr),
}

impl Class {
    fn parse(expression: Expr) -> Result<Self> {
        let needed = |span| {
            let message = "a class is a name in quotes, `class = \"Linear\"`, or an expression that gives one, \
                           `class = classes::linear()`";
            Err(Error::new(span, message))
        };
        match expression {
            Expr::Lit(ExprLit { lit: Lit::Str(literal), .. }) => {
                literal.parse::<Ident>().map_err(|_| {
                    let message = "the short name of a class is an identifier, such as `Linear`";
                    Error::new(literal.span(), message)
                })?;
                Ok(Self::Name(literal.value()))
            }
            Expr::Lit(literal) => needed(literal.span()),
            Expr::Path(path) if is_type_name(&path.path) => needed(path.span()),
            expression => Ok(Self::Known(expression)),
        }
    }
}

/// Whether a path is one word in the manner of types, `Linear`.
fn is_type_name(path: &Path) -> bool {
    path.get_ident().is_some_and(|ident| {
        let name = ident.to_string();
        name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase)
    })
}

impl OnField {
    pub(crate) fn parse(attributes: &[Attribute]) -> Result<Self> {
        let mut skip = None;
        let mut rename = None;
        let mut aliases = None;
        each_key(attributes, "a field", &FIELD_KEYS, |key, meta| match key {
            "skip" => once(&mut skip, meta.path.span(), meta.path.span(), key),
            "aliases" => once(&mut aliases, meta.path.span(), meta.path.span(), key),
            _ => {
                let literal: LitStr = meta.value()?.parse()?;
                let name = literal.value();
                if name.is_empty()
                    || name.contains(['/', '.'])
                    || name.contains(char::is_whitespace)
                {
                    let message = format!(
                        "a child cannot be named {name:?}: names are joined with `/` and `.` in queries and paths, \
                         so they are not empty and hold neither of these nor white space"
                    );
                    return Err(Error::new(literal.span(), message));
                }
                once(&mut rename, (name, literal.span()), meta.path.span(), key)
            }
        })?;
        if let (Some(_), Some((_, span))) = (skip, &rename) {
            return Err(Error::new(
                *span,
                "a field that is skipped has no name: remove `skip` or `rename`",
            ));
        }
        if let (Some(span), true) = (aliases, skip.is_some() || rename.is_some()) {
            return Err(Error::new(
                span,
                "aliases are no child, so they have no name and need no `skip`: write `#[module(aliases)]` alone",
            ));
        }
        Ok(Self { skip: skip.is_some(), rename, aliases })
    }
}

/// Refuses `#[module(...)]` where it has no meaning.
pub(crate) fn none_on_variant(attributes: &[Attribute]) -> Result<()> {
    match attributes.iter().find(|attribute| attribute.path().is_ident("module")) {
        Some(attribute) => Err(Error::new(
            attribute.span(),
            "`#[module(...)]` stands on the enum or on a field of the variant, not on the variant",
        )),
        None => Ok(()),
    }
}

/// Calls `take` for each key; a key that does not belong here is an error that says where it does or what is near.
/// Gathers the mistakes of all keys.
fn each_key(
    attributes: &[Attribute],
    place: &str,
    keys: &[&str],
    mut take: impl FnMut(&str, &ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    let mut problems = Problems::default();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("module")) {
        let syntax = attribute.parse_nested_meta(|meta| {
            let path = &meta.path;
            let found = match path.get_ident() {
                Some(ident) => ident.to_string(),
                None => quote!(#path).to_string(),
            };
            if keys.contains(&found.as_str()) {
                problems.take(take(&found, &meta));
            } else {
                problems.add(meta.error(format!(
                    "`{found}` is no attribute of {place}; {}",
                    advice(&found, keys)
                )));
            }
            // What is left of the key's value was not understood: pass over it, to see the keys after it.
            if meta.input.peek(Token![=]) {
                meta.value()?.parse::<Expr>()?;
            }
            Ok(())
        });
        problems.take(syntax);
    }
    problems.finish()
}

fn advice(found: &str, keys: &[&str]) -> String {
    if TYPE_KEYS.contains(&found) {
        "it stands on the struct or enum".to_owned()
    } else if FIELD_KEYS.contains(&found) {
        "it stands on a field".to_owned()
    } else if let Some(near) = keys.iter().find(|key| is_near(key, found)) {
        format!("did you mean `{near}`?")
    } else {
        let known: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        format!("known here: {}", known.join(", "))
    }
}

fn once<T>(place: &mut Option<T>, value: T, span: Span, key: &str) -> Result<()> {
    match place.replace(value) {
        Some(_) => Err(Error::new(span, format!("`{key}` is given twice"))),
        None => Ok(()),
    }
}

/// Whether one word could be a slip of the other: a common start, or one letter too many, too few, wrong or swapped.
fn is_near(word: &str, found: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (word.chars().collect(), found.chars().collect());
    let start = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let end =
        a[start..].iter().rev().zip(b[start..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (rest_a, rest_b) = (a.len() - start - end, b.len() - start - end);
    start >= 3 || (rest_a <= 1 && rest_b <= 1) || (rest_a == 2 && rest_b == 2 && start + end > 0)
}
