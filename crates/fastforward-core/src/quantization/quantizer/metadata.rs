//! What a slot is for.

use std::collections::BTreeMap;

use mpath::{Tag, TagSet};

/// The tags that the reference system puts on the slots of its modules (spec §3.1).
pub mod default_tags {
    use mpath::Tag;

    /// `parameter`: weights and biases.
    pub fn parameter() -> Tag {
        Tag::new("parameter")
    }
    /// `parameter/weight`.
    pub fn weight() -> Tag {
        Tag::new("parameter/weight")
    }
    /// `parameter/bias`.
    pub fn bias() -> Tag {
        Tag::new("parameter/bias")
    }
    /// `activation`: inputs and outputs.
    pub fn activation() -> Tag {
        Tag::new("activation")
    }
    /// `activation/input`.
    pub fn input() -> Tag {
        Tag::new("activation/input")
    }
    /// `activation/output`.
    pub fn output() -> Tag {
        Tag::new("activation/output")
    }
}

/// The tags of a slot, the shape of the data it sees if that is known, and free attributes (spec §3.2).
///
/// ```
/// use fastforward_core::quantization::quantizer::{QuantizerMetadata, Tag};
/// let metadata = QuantizerMetadata::weight().with_tag("lowbit").with_shape(&[8, 4]);
/// assert!(metadata.contains(Tag::new("parameter")) && metadata.is_weight_quantizer());
/// assert_eq!(metadata.shape(), Some(&[8, 4][..]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantizerMetadata {
    tags: TagSet,
    shape: Option<Vec<usize>>,
    attributes: BTreeMap<String, String>,
}

impl QuantizerMetadata {
    /// Metadata with these tags and their prefixes.
    pub fn new(tags: impl IntoIterator<Item = Tag>) -> Self {
        Self { tags: TagSet::new(tags), ..Self::default() }
    }

    /// Metadata of a weight: `parameter/weight`.
    pub fn weight() -> Self {
        Self::new([default_tags::weight()])
    }

    /// Metadata of a bias: `parameter/bias`.
    pub fn bias() -> Self {
        Self::new([default_tags::bias()])
    }

    /// Metadata of an input: `activation/input`.
    pub fn input() -> Self {
        Self::new([default_tags::input()])
    }

    /// Metadata of an output: `activation/output`.
    pub fn output() -> Self {
        Self::new([default_tags::output()])
    }

    /// The same with one more tag.
    pub fn with_tag(mut self, tag: impl Into<Tag>) -> Self {
        self.add_tag(tag);
        self
    }

    /// The same with this shape.
    pub fn with_shape(mut self, shape: &[usize]) -> Self {
        self.shape = Some(shape.to_vec());
        self
    }

    /// The same with one more attribute.
    pub fn with_attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// Adds a tag and its prefixes.
    pub fn add_tag(&mut self, tag: impl Into<Tag>) {
        self.tags = self.tags.with(tag.into());
    }

    /// All tags, prefixes included, sorted.
    pub fn tags(&self) -> TagSet {
        self.tags
    }

    /// The tags that are not prefixes of others: what was added.
    pub fn leaf_tags(&self) -> Vec<Tag> {
        let all = self.tags.as_slice();
        let is_prefix = |tag: Tag| {
            all.iter().any(|&other| other != tag && other.hierarchy().any(|level| level == tag))
        };
        all.iter().copied().filter(|&tag| !is_prefix(tag)).collect()
    }

    /// Whether the tag, or a tag below it, was added.
    pub fn contains(&self, tag: Tag) -> bool {
        self.tags.contains(tag)
    }

    /// The shape of the data the slot sees, if it is known.
    pub fn shape(&self) -> Option<&[usize]> {
        self.shape.as_deref()
    }

    /// Free attributes, sorted by key.
    pub fn attributes(&self) -> &BTreeMap<String, String> {
        &self.attributes
    }

    /// Whether the slot is for a parameter.
    pub fn is_parameter_quantizer(&self) -> bool {
        self.contains(default_tags::parameter())
    }

    /// Whether the slot is for a weight.
    pub fn is_weight_quantizer(&self) -> bool {
        self.contains(default_tags::weight())
    }

    /// Whether the slot is for a bias.
    pub fn is_bias_quantizer(&self) -> bool {
        self.contains(default_tags::bias())
    }

    /// Whether the slot is for an activation.
    pub fn is_activation_quantizer(&self) -> bool {
        self.contains(default_tags::activation())
    }

    /// Whether the slot is for an input.
    pub fn is_input_quantizer(&self) -> bool {
        self.contains(default_tags::input())
    }

    /// Whether the slot is for an output.
    pub fn is_output_quantizer(&self) -> bool {
        self.contains(default_tags::output())
    }

    /// Whether `other` says everything that this metadata says: all its tags, its shape if set, and its attributes with
    /// the same values. An attribute that `other` lacks makes the answer `false`.
    pub fn is_extension(&self, other: &QuantizerMetadata) -> bool {
        other.tags.is_superset(self.tags)
            && (self.shape.is_none() || self.shape == other.shape)
            && self.attributes.iter().all(|(key, value)| other.attributes.get(key) == Some(value))
    }
}
