//! Weights without data, also of a graph that cannot be executed.

use fastforward_onnx::graph::Model;

use crate::bench::{Bench, examples};

const QUANTIZE: [&str; 6] =
    ["quantize", "digits_cnn.onnx", "--config", "weights-only.toml", "--out", "out"];

/// The digits example with the configuration for any network.
fn bench(evaluation: &str) -> Bench {
    let bench = Bench::new();
    let config = std::fs::read_to_string(examples().join("weights-only.toml")).unwrap();
    bench.write("weights-only.toml", config + evaluation);
    bench
}

/// Makes an operator of the network one that nobody knows.
fn add_unknown_operator(bench: &Bench) {
    let mut model = Model::load(&examples().join("digits/digits_cnn.onnx")).unwrap();
    let node = model.graph_mut().node.iter_mut().find(|node| node.op_type() == "Relu").unwrap();
    node.op_type = Some("Rectify".to_owned());
    node.domain = Some("com.example".to_owned());
    node.name = Some("r".to_owned());
    model.set_opset("com.example", 1);
    model.save(&bench.path("digits_cnn.onnx")).unwrap();
}

#[test]
fn weights_need_no_data() {
    let bench = bench("");
    let transcript = bench.transcript(&QUANTIZE);
    let end = "\
verified   4 constants and 0 activations read back exactly
verified   outputs not compared: there are no samples
written    out/digits_cnn.qdq.onnx
           out/report.json
-- exit 0
";
    assert!(transcript.ends_with(end), "{transcript}");
    assert!(!transcript.contains("NaN"), "{transcript}");
    assert!(bench.contents("out").contains_key("digits_cnn.qdq.onnx"));
}

#[test]
fn weights_of_a_graph_that_cannot_be_executed_are_quantized() {
    let bench = bench("");
    add_unknown_operator(&bench);
    let transcript = bench.transcript(&QUANTIZE);
    let line = "verified   outputs not compared: operator `Rectify` (node `r`) of the domain `com.example` is not supported \
                by the execution engine\n";
    assert!(transcript.contains(line), "{transcript}");
    assert!(transcript.ends_with("-- exit 0\n"), "{transcript}");
}

#[test]
fn an_evaluation_of_a_graph_that_cannot_be_executed_is_refused() {
    let bench = bench("\n[evaluation]\ndata = \"digits.safetensors\"\nmetric = \"sqnr\"\n");
    bench.write(
        "weights-only.toml",
        std::fs::read_to_string(bench.path("weights-only.toml")).unwrap()
            + "\n[inputs.image]\ntensor = \"images\"\nreshape = [1, 8, 8]\n",
    );
    add_unknown_operator(&bench);
    assert_eq!(
        bench.transcript(&QUANTIZE),
        "\
-- stderr
error: in [evaluation], which executes the model (constants can be quantized without it): operator `Rectify` (node `r`) of \
the domain `com.example` is not supported by the execution engine
-- exit 2
"
    );
    assert!(!bench.path("out").exists());
}
