//! `[quantizer:TAG, ..]`: quantizers by what they are for.

use std::fmt;

use mpath::{DependsOn, Facts, Fragment, Tag};

/// Matches quantizers, stubs included, that carry all of some tags (spec §2.4).
///
/// In a query it is written `[quantizer:TAG, TAG, ..]` or `[qtag:..]`. A tag matches every tag below it: `activation`
/// matches a slot tagged `activation/input`.
///
/// ```
/// use fastforward_core::quantization::quant_init::QuantizerTagSelectorFragment;
/// let fragment = QuantizerTagSelectorFragment::from_raw_string("parameter/weight,lowbit");
/// assert_eq!(fragment.to_string(), "[quantizer:parameter/weight, lowbit]");
/// assert_eq!(fragment, QuantizerTagSelectorFragment::new(["parameter/weight", "lowbit"]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QuantizerTagSelectorFragment {
    tags: Vec<Tag>,
}

impl QuantizerTagSelectorFragment {
    /// Quantizers that carry all of these tags.
    pub fn new<T: Into<Tag>>(tags: impl IntoIterator<Item = T>) -> Self {
        Self { tags: tags.into_iter().map(Into::into).collect() }
    }

    /// The body of `[quantizer:BODY]`: tags separated by commas, the space around each one left out.
    pub fn from_raw_string(raw: &str) -> Self {
        Self::new(raw.split(',').map(str::trim))
    }

    /// The tags, in the order they were given.
    pub fn tags(&self) -> &[Tag] {
        &self.tags
    }
}

impl Fragment for QuantizerTagSelectorFragment {
    fn matches(&self, _name: &str, node: &dyn Facts) -> bool {
        node.tags().is_some_and(|found| self.tags.iter().all(|&tag| found.contains(tag)))
    }

    fn depends_on(&self) -> DependsOn {
        DependsOn::ClassAndTags
    }

    fn alternatives(&self, _name: &str, node: &dyn Facts) -> Vec<String> {
        let tags = node.tags().map_or(&[][..], |tags| tags.as_slice());
        tags.iter().map(|&tag| Self::new([tag]).to_string()).collect()
    }
}

impl fmt::Display for QuantizerTagSelectorFragment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[quantizer:")?;
        for (at, tag) in self.tags.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            f.write_str(tag.as_str())?;
        }
        f.write_str("]")
    }
}
