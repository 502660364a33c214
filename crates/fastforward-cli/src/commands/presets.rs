//! `presets`: configurations to start from.

use fastforward_core::config::Preset;
use serde_json::json;

use crate::args::Presets;
use crate::output::{Outcome, line_width};
use crate::table::{Column, Table};

pub(super) fn run(args: &Presets) -> anyhow::Result<Outcome> {
    let Some(name) = &args.name else { return list() };
    let Some(preset) = Preset::named(name) else {
        let names = Preset::ALL.map(|preset| preset.name);
        let help = match mpath::suggest::nearest(name, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", names.join(", ")),
        };
        anyhow::bail!("there is no preset `{name}`; {help}");
    };
    Outcome::done(preset.text.to_owned(), &json!({ "name": preset.name, "text": preset.text }))
}

fn list() -> anyhow::Result<Outcome> {
    let mut table = Table::new([Column::left("preset"), Column::left("for")]);
    for preset in Preset::ALL {
        table.row([preset.name.to_owned(), preset.summary().to_owned()]);
    }
    let mut text = table.render(line_width());
    text.push_str("\n`fastforward presets NAME > quant.toml` writes one down, to be edited\n");
    let all = Preset::ALL.map(|one| json!({ "name": one.name, "summary": one.summary() }));
    Outcome::done(text, &all)
}
