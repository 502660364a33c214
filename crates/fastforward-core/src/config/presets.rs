//! Configurations to start from.

/// A configuration that ships with the library, as the text of a `quant.toml`.
///
/// ```
/// use std::path::Path;
/// use fastforward_core::config::{Preset, QuantConfigFile};
///
/// let preset = Preset::named("w4a8").unwrap();
/// assert!(preset.summary().starts_with("4-bit weights, 8-bit activations"));
/// let config = QuantConfigFile::parse(preset.text, "quant.toml", Path::new("."))?;
/// assert_eq!(config.algorithms[1].algorithm.name(), "adaround");
/// # Ok::<(), fastforward_core::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name: bits of weights, bits of activations, and what is special.
    pub name: &'static str,
    /// The file.
    pub text: &'static str,
}

impl Preset {
    /// Every preset, by its name.
    pub const ALL: [Self; 5] = [
        Self { name: "w2a8-qat", text: include_str!("../../presets/w2a8-qat.toml") },
        Self { name: "w4a16-g128", text: include_str!("../../presets/w4a16-g128.toml") },
        Self { name: "w4a8", text: include_str!("../../presets/w4a8.toml") },
        Self { name: "w8a16", text: include_str!("../../presets/w8a16.toml") },
        Self { name: "w8a8", text: include_str!("../../presets/w8a8.toml") },
    ];

    /// The preset of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name == name)
    }

    /// What it is for, in a line.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches("# ")
    }
}
