//! The query language.
//!
//! A query is a path of fragments separated by slashes. It matches the nodes that lie on such a path below the root; the
//! root itself is never matched. White space around fragments and signs means nothing.
//!
//! ```text
//! query      = [ "/" ] selector END
//! selector   = fragment { "/" fragment } [ "/" ]      the last slash only at the end of the query
//! fragment   = name | wildcard | extension | group | negation | alias
//! name       = IDENTIFIER | DIGITS
//! wildcard   = "*" | "**"
//! extension  = "[" IDENTIFIER ":" body "]"
//! group      = "{" selector { "," selector } "}"
//! negation   = "~" fragment
//! alias      = "&" IDENTIFIER
//! ```
//!
//! | fragment | matches |
//! |---|---|
//! | `name` | the child of that name: a Unicode identifier or decimal digits |
//! | `*` | any child |
//! | `**` | any number of levels, none included: `a/**` matches `a` and all below it |
//! | `[re:P]`, `[regex:P]` | children whose whole name the regular expression `P` matches |
//! | `[cls:C]`, `[class:C]` | nodes of class `C`, or of one that extends it, under any name that the [`Context`] gives it |
//! | `[quantizer:a, b]`, `[qtag:a, b]` | quantizers that have all the tags; registered by the crate that knows quantizers |
//! | `[name:N]` | the child of exactly that name, for names that have no plain form, such as `layer.0` |
//! | `[tag:body]` | what an [`Extension`] registered for `tag` makes of the body |
//! | `{a, b/c}` | what any of the alternatives matches; each may have several segments, and groups may be nested |
//! | `~f` | what the single fragment `f` does not match; `~*` and `~**` match nothing, `~~f` is `f` |
//! | `&name` | what the alias of that name stands for: see [`Aliases`] |
//!
//! The body of an extension reaches to the first `]` that neither a backslash precedes nor a pair of double quotes
//! encloses; it is handed over as written, white space and backslashes included. So a bracket in a regular expression is
//! written `\]`: `[re:layer[0-9\]]`.
//!
//! # Differences from the Python system
//!
//! - Names resolve through the [`Context`] that is passed, never through the variables of the caller: a query means the
//!   same wherever it is parsed, and may come from a file.
//! - `[name:...]` is ours: names such as `layer.0` or `a-b` could not be written there, except as regular expressions.
//! - A group with the alternative `**` means what it says. There, `{**}` searches without end, `{**, **/a}` forgets the
//!   first alternative, and `a/{**, x}` does not match `a`.
//! - Selectors are equal when they have the same structure. There, two parses of one text differ.
//! - What was parsed prints as a text that parses to the same. There, brackets in regular expressions and qualified class
//!   names are printed so that they do not.
//! - `&` of selectors repeats when all its operands do. There, it never does.
//! - A fragment of your own that repeats may stand for no level at all, like `**`. There, this holds only if a child
//!   matches it.
//! - A scope of an extension restores what it replaced. There, it removes the tag.
//! - Set operations on collections keep the order of the left operand. There, the order is lost.
//! - [`MPathCollection::apply`] with `update: false` calls the function and changes nothing. There, it does nothing.
//! - Regular expressions have no look-around and no back-references, and match in linear time.
//! - Queries and trees have bounds ([`limits`](crate::limits)); exceeding one is an error.
//!
//! The order of results of [`search`](crate::search) is that of the Python system. It may differ when an alternative of a
//! group begins with several `**` in a row, or has a bare `**`.
//!
//! [`Context`]: crate::Context
//! [`Extension`]: crate::Extension
//! [`Aliases`]: crate::Aliases
//! [`MPathCollection::apply`]: crate::MPathCollection::apply
