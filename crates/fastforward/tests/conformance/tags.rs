//! Family `tags`: hierarchies and membership.

use fastforward::quantization::{QuantizerMetadata, Tag};
use serde_json::{Value, json};

use crate::differences::{judge, run};
use crate::golden::{Family, texts};

fn metadata(case: &Value) -> QuantizerMetadata {
    let mut metadata =
        QuantizerMetadata::new(texts(&case["metadata_tags"]).into_iter().map(Tag::new));
    for (flag, value) in case["metadata_flags"].as_object().expect("flags") {
        if value.as_bool() == Some(true) {
            metadata.add_tag(match flag.as_str() {
                "weight_quantizer" => "parameter/weight",
                "bias_quantizer" => "parameter/bias",
                "input_quantizer" => "activation/input",
                "output_quantizer" => "activation/output",
                other => panic!("flag {other}"),
            });
        }
    }
    metadata
}

#[test]
fn conformance_tags() {
    let family = Family::read("tags");
    let mut previous: Option<QuantizerMetadata> = None;
    run("tags", family.cases(), |case| {
        let metadata = metadata(case);
        let tag = Tag::new(case["tag"].as_str().expect("a tag"));
        let mut ours = json!({
            "match": metadata.contains(tag),
            "hierarchy": tag.hierarchy().map(Tag::as_str).collect::<Vec<_>>(),
            "expanded": metadata.tags().as_slice().iter().map(|tag| tag.as_str()).collect::<Vec<_>>(),
            "flags": {
                "parameter_quantizer": metadata.is_parameter_quantizer(),
                "weight_quantizer": metadata.is_weight_quantizer(),
                "bias_quantizer": metadata.is_bias_quantizer(),
                "input_quantizer": metadata.is_input_quantizer(),
                "activation_quantizer": metadata.is_activation_quantizer(),
                "output_quantizer": metadata.is_output_quantizer(),
            },
        });
        if let Some(previous) = &previous {
            ours["is_extended_by_previous"] = json!(metadata.is_extension(previous));
        }
        previous = Some(metadata);
        judge("tags", case, &ours, || {
            let fields = ours.as_object().expect("an object");
            match fields.iter().find(|(name, value)| case.get(name.as_str()) != Some(value)) {
                None => Ok(()),
                Some((name, value)) => {
                    Err(format!("{name}: {value}, expected {}", case[name.as_str()]))
                }
            }
        })
    });
}
