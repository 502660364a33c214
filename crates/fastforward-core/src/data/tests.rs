use std::fs;
use std::io::Write;
use std::path::PathBuf;

use npyz::zip::write::FileOptions;
use npyz::zip::{CompressionMethod, ZipWriter};
use safetensors::{Dtype, tensor::TensorView};

use super::*;

/// The bytes of a NumPy array.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn npz(members: &[(&str, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(vec![]));
    for (name, bytes) in members {
        zip.start_file(*name, FileOptions::default().compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn safetensors(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn le<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    le(values, f32::to_le_bytes)
}

/// A folder with files, and the messages that name them.
struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, bytes) in files {
            folder.write(name, bytes);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn spec(&self, name: &str) -> DataSpec {
        DataSpec::new(DataPath::One(self.path(name)))
    }

    /// The message with the folder's name replaced by `.`.
    fn message(&self, error: &Error) -> String {
        error.to_string().replace(&format!("{}", self.0.path().display()), ".")
    }
}

fn input(name: &str) -> ModelInput {
    ModelInput { name: name.to_owned(), dtype: InputType::F32, shape: None }
}

fn shaped(name: &str, shape: &[usize]) -> ModelInput {
    let shape = std::iter::once(None).chain(shape.iter().copied().map(Some)).collect();
    ModelInput { shape: Some(shape), ..input(name) }
}

fn of_type(name: &str, dtype: InputType) -> ModelInput {
    ModelInput { dtype, ..input(name) }
}

fn no_inputs() -> IndexMap<String, InputSpec> {
    IndexMap::new()
}

fn with(name: &str, spec: InputSpec) -> IndexMap<String, InputSpec> {
    [(name.to_owned(), spec)].into()
}

/// Every batch's elements of every input.
fn elements(dataset: &Dataset, batch_size: usize) -> Result<Vec<Vec<ArrayData>>, Error> {
    dataset
        .batches(batch_size)
        .map(|batch| batch.map(|batch| batch.inputs.into_iter().map(|input| input.data).collect()))
        .collect()
}

fn float(values: &[f32]) -> Vec<ArrayData> {
    vec![ArrayData::Float(values.to_vec())]
}

#[test]
fn every_format_gives_the_same_samples() {
    let data: Vec<u8> = (0..12).collect();
    let labels = [3, 1, 2];
    let members =
        [("x.npy", npy("|u1", "(3, 2, 2)", &data)), ("y.npy", npy("|u1", "(3,)", &labels))];
    let files = Files::new(&[
        (
            "a.safetensors",
            safetensors(&[("x", Dtype::U8, &[3, 2, 2], &data), ("y", Dtype::U8, &[3], &labels)]),
        ),
        ("stored.npz", npz(&members, CompressionMethod::Stored)),
        ("deflated.npz", npz(&members, CompressionMethod::Deflated)),
        ("x.npy", members[0].1.clone()),
        ("y.npy", members[1].1.clone()),
        ("samples/9.npy", npy("|u1", "(2, 2)", &data[..4])),
        ("samples/10.npy", npy("|u1", "(2, 2)", &data[4..8])),
        ("samples/11.npy", npy("|u1", "(2, 2)", &data[8..])),
        ("samples/readme.txt", vec![]),
        ("parts/1.npy", npy("|u1", "(1, 2, 2)", &data[..4])),
        ("parts/2.npy", npy("|u1", "(2, 2, 2)", &data[4..])),
        ("both/x/1.npy", npy("|u1", "(3, 2, 2)", &data)),
        ("both/y/1.npy", npy("|u1", "(3,)", &labels)),
    ]);
    let several = |x: &str| {
        let paths = [("x", x), ("y", "y.npy")];
        let paths = paths.map(|(name, file)| (name.to_owned(), files.path(file)));
        DataSpec::new(DataPath::Several(paths.into_iter().collect()))
    };
    let in_parts = |spec: DataSpec| DataSpec { each_file: EachFile::Batch, ..spec };
    for spec in [
        files.spec("a.safetensors"),
        files.spec("stored.npz"),
        files.spec("deflated.npz"),
        several("x.npy"),
        several("samples"),
        in_parts(several("parts")),
        in_parts(files.spec("both")),
    ] {
        let spec = DataSpec { labels: Some("y".to_owned()), ..spec };
        let dataset = Dataset::open(&spec, &no_inputs(), &[shaped("input", &[2, 2])])
            .unwrap_or_else(|error| panic!("{spec:?}: {error}"));
        assert_eq!(dataset.num_samples(), 3);
        assert_eq!(dataset.labels(), Some(&[3, 1, 2][..]));
        let batches: Vec<Batch<'_>> = dataset.batches(2).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            batches,
            [
                Batch {
                    first: 0,
                    inputs: vec![NamedArray {
                        name: "input".to_owned(),
                        dtype: InputType::F32,
                        shape: vec![2, 2, 2],
                        data: ArrayData::Float((0..8).map(|x| x as f32).collect()),
                    }],
                    labels: Some(&[3, 1]),
                },
                Batch {
                    first: 2,
                    inputs: vec![NamedArray {
                        name: "input".to_owned(),
                        dtype: InputType::F32,
                        shape: vec![1, 2, 2],
                        data: ArrayData::Float((8..12).map(|x| x as f32).collect()),
                    }],
                    labels: Some(&[2]),
                },
            ],
            "{spec:?}"
        );
    }
}

#[test]
fn every_element_type_is_converted() {
    let cases: [(&str, Vec<u8>, &[f32]); 13] = [
        ("|b1", vec![0, 1, 255], &[0.0, 1.0, 1.0]),
        ("|u1", vec![0, 1, 255], &[0.0, 1.0, 255.0]),
        ("|i1", vec![0, 1, 255], &[0.0, 1.0, -1.0]),
        ("<u2", le(&[0, 1, u16::MAX], u16::to_le_bytes), &[0.0, 1.0, 65535.0]),
        ("<i2", le(&[0, 1, -2], i16::to_le_bytes), &[0.0, 1.0, -2.0]),
        ("<u4", le(&[0, 1, u32::MAX], u32::to_le_bytes), &[0.0, 1.0, 4294967296.0]),
        ("<i4", le(&[0, 1, -2], i32::to_le_bytes), &[0.0, 1.0, -2.0]),
        (">i4", le(&[0, 1, -2], i32::to_be_bytes), &[0.0, 1.0, -2.0]),
        ("<u8", le(&[0, 1, 1 << 60], u64::to_le_bytes), &[0.0, 1.0, (1u64 << 60) as f32]),
        ("<i8", le(&[0, 1, -2], i64::to_le_bytes), &[0.0, 1.0, -2.0]),
        ("<f2", le(&[0u16, 0x3c00, 0xc100], u16::to_le_bytes), &[0.0, 1.0, -2.5]),
        (">f4", le(&[0.0, 1.0, -2.5], f32::to_be_bytes), &[0.0, 1.0, -2.5]),
        ("<f8", le(&[0.0, 0.1, -2.5], f64::to_le_bytes), &[0.0, 0.1, -2.5]),
    ];
    for (descr, bytes, expected) in cases {
        let files = Files::new(&[("x.npy", npy(descr, "(3,)", &bytes))]);
        let dataset = Dataset::open(&files.spec("x.npy"), &no_inputs(), &[input("x")]).unwrap();
        assert_eq!(elements(&dataset, 8).unwrap(), [float(expected)], "{descr}");
    }
    let bf16 = le(&[0x3f80u16, 0xc020], u16::to_le_bytes);
    let files = Files::new(&[("x.safetensors", safetensors(&[("x", Dtype::BF16, &[2], &bf16)]))]);
    let dataset = Dataset::open(&files.spec("x.safetensors"), &no_inputs(), &[input("x")]).unwrap();
    assert_eq!(elements(&dataset, 8).unwrap(), [float(&[1.0, -2.5])]);
}

#[test]
fn integer_inputs_get_their_integers_exactly() {
    let values = [i64::MAX, i64::MIN, 0];
    let files = Files::new(&[
        ("x.npy", npy("<i8", "(3,)", &le(&values, i64::to_le_bytes))),
        ("big.npy", npy("<u8", "(2,)", &le(&[7, u64::MAX], u64::to_le_bytes))),
        ("f.npy", npy("<f4", "(1,)", &floats(&[1.0]))),
    ]);
    let open =
        |file: &str, dtype| Dataset::open(&files.spec(file), &no_inputs(), &[of_type("x", dtype)]);
    let dataset = open("x.npy", InputType::I64).unwrap();
    assert_eq!(elements(&dataset, 3).unwrap(), [[ArrayData::Integer(values.to_vec())]]);

    let error = elements(&open("x.npy", InputType::I32).unwrap(), 3).unwrap_err();
    assert_eq!(
        files.message(&error),
        "tensor `x` of ./x.npy: sample 0 has 9223372036854775807, outside -2147483648..=2147483647 of i32 at element []"
    );
    let error = elements(&open("big.npy", InputType::I64).unwrap(), 3).unwrap_err();
    assert_eq!(
        files.message(&error),
        "tensor `big` of ./big.npy: sample 1 has 18446744073709551615, outside -9223372036854775808..=9223372036854775807 of i64 at element []"
    );
    assert_eq!(
        files.message(&open("f.npy", InputType::I64).unwrap_err()),
        "input `x`: the model takes i64, tensor `f` of ./f.npy holds f32; store integers"
    );
}

#[test]
fn images_are_scaled_as_training_did() {
    let pixels: Vec<u8> = (0..=255).collect();
    let files = Files::new(&[("x.npy", npy("|u1", "(1, 16, 16)", &pixels))]);
    let spec = InputSpec {
        divide_by: Some(255.0),
        reshape: Some(vec![1, 16, 16]),
        ..InputSpec::default()
    };
    let model = [shaped("image", &[1, 16, 16])];
    let dataset = Dataset::open(&files.spec("x.npy"), &with("image", spec), &model).unwrap();
    let expected: Vec<f32> = (0..=255).map(|pixel| pixel as f32 / 255.0).collect();
    assert_eq!(elements(&dataset, 1).unwrap(), [float(&expected)]);
}

#[test]
fn transforms() {
    // Two samples of 2 × 3: [0 1 2; 3 4 5] and [6 7 8; 9 10 11].
    let data: Vec<f32> = (0..12).map(|x| x as f32).collect();
    let files = Files::new(&[("x.npy", npy("<f4", "(2, 2, 3)", &floats(&data)))]);
    let spec = InputSpec::default();
    let cases: [(InputSpec, &[usize], &[f32]); 7] = [
        (spec.clone(), &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
        (
            InputSpec { scale: Some(2.0), mean: vec![1.0], std: vec![2.0], ..spec.clone() },
            &[2, 3],
            &[-0.5, 0.5, 1.5, 2.5, 3.5, 4.5],
        ),
        (
            InputSpec { mean: vec![0.0, 3.0], ..spec.clone() },
            &[2, 3],
            &[0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
        ),
        (
            InputSpec {
                mean: vec![1.0],
                std: vec![1.0, 2.0, 4.0],
                channel_axis: Some(-1),
                ..spec.clone()
            },
            &[2, 3],
            &[-1.0, 0.0, 0.25, 2.0, 1.5, 1.0],
        ),
        (
            InputSpec { reshape: Some(vec![6]), ..spec.clone() },
            &[6],
            &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        ),
        (
            InputSpec { transpose: Some(vec![1, 0]), ..spec.clone() },
            &[3, 2],
            &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0],
        ),
        // Channels are those of the transposed sample.
        (
            InputSpec {
                reshape: Some(vec![1, 2, 3]),
                transpose: Some(vec![2, 0, 1]),
                mean: vec![0.0, 1.0, 2.0],
                ..spec.clone()
            },
            &[3, 1, 2],
            &[0.0, 3.0, 0.0, 3.0, 0.0, 3.0],
        ),
    ];
    for (spec, shape, expected) in cases {
        let model = [shaped("x", shape)];
        let dataset = Dataset::open(&files.spec("x.npy"), &with("x", spec.clone()), &model)
            .unwrap_or_else(|error| panic!("{error}"));
        let batch = dataset.batches(1).next().unwrap().unwrap();
        assert_eq!(batch.inputs[0].shape[1..], *shape);
        assert_eq!(batch.inputs[0].data, ArrayData::Float(expected.to_vec()), "{spec:?}");
    }
}

#[test]
fn a_range_of_samples_can_be_chosen() {
    let data: Vec<u8> = (0..10).collect();
    let files = Files::new(&[
        ("x.npy", npy("|u1", "(10,)", &data)),
        ("none.npy", npy("|u1", "(0, 3)", &[])),
    ]);
    let open = |skip, samples| {
        let spec = DataSpec { skip, samples, ..files.spec("x.npy") };
        Dataset::open(&spec, &no_inputs(), &[input("x")])
    };
    let dataset = open(7, Some(2)).unwrap();
    assert_eq!(elements(&dataset, 8).unwrap(), [float(&[7.0, 8.0])]);
    assert_eq!(open(7, None).unwrap().num_samples(), 3);
    for (skip, samples, expected) in [
        (0, Some(11), "./x.npy: 11 samples are asked for, it holds 10"),
        (8, Some(3), "./x.npy: 3 samples after 8 are asked for, it holds 10"),
        (10, None, "./x.npy: skipping 10 of 10 samples leaves none"),
        (0, Some(0), "./x.npy: `samples = 0` leaves no sample"),
    ] {
        assert_eq!(files.message(&open(skip, samples).unwrap_err()), expected);
    }
    let error = Dataset::open(&files.spec("none.npy"), &no_inputs(), &[input("x")]).unwrap_err();
    assert_eq!(files.message(&error), "./none.npy: it holds no sample");
}

#[test]
fn a_fixed_batch_size_of_the_model_is_kept() {
    let files = Files::new(&[("x.npy", npy("|u1", "(6,)", &[0; 6]))]);
    let fixed = |size| [ModelInput { shape: Some(vec![Some(size)]), ..input("x") }];
    let dataset = Dataset::open(&files.spec("x.npy"), &no_inputs(), &fixed(2)).unwrap();
    assert_eq!(dataset.fixed_batch_size(), Some(2));
    assert_eq!(dataset.batches(100).count(), 3);
    let error = Dataset::open(&files.spec("x.npy"), &no_inputs(), &fixed(4)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "input `x` takes batches of exactly 4, and 6 samples are no multiple of it; set `samples`"
    );
}

/// Opens `data.safetensors` with f32 `images` [2, 4], f32 `more` [2, 3], u8 `labels` [2], and says why that fails.
#[track_caller]
fn refused(
    labels: Option<&str>,
    inputs: &IndexMap<String, InputSpec>,
    model: &[ModelInput],
    expected: &str,
) {
    let files = Files::new(&[(
        "data.safetensors",
        safetensors(&[
            ("images", Dtype::F32, &[2, 4], &floats(&[0.0; 8])),
            ("more", Dtype::F32, &[2, 3], &floats(&[0.0; 6])),
            ("short", Dtype::F32, &[1], &floats(&[0.0])),
            ("scalar", Dtype::F32, &[], &floats(&[0.0])),
            ("labels", Dtype::U8, &[2], &[0, 1]),
            ("negative", Dtype::I8, &[2], &[0, 255]),
            ("odd", Dtype::F8_E4M3, &[2], &[0, 0]),
        ]),
    )]);
    let spec = DataSpec { labels: labels.map(str::to_owned), ..files.spec("data.safetensors") };
    let error = Dataset::open(&spec, inputs, model).unwrap_err();
    assert_eq!(files.message(&error), expected);
    assert_eq!(error.kind(), ErrorKind::InvalidData);
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let tensor = |name: &str| InputSpec { tensor: Some(name.to_owned()), ..InputSpec::default() };
    let images = || tensor("images");
    let holds = "./data.safetensors holds `images`, `more`, `scalar`, `short`, `negative`, `labels`; not usable: `odd` (F8_E4M3)";
    let listed = |text: &str| text.replace("HOLDS", holds);

    refused(
        None,
        &no_inputs(),
        &[input("x")],
        &listed(
            "input `x`: no tensor feeds it; HOLDS; name one with `tensor = \"...\"` in [inputs.x]",
        ),
    );
    refused(
        None,
        &with("x", tensor("imagse")),
        &[input("x")],
        &listed("input `x`: no tensor `imagse`; HOLDS; did you mean `images`?"),
    );
    refused(
        None,
        &with("y", images()),
        &[input("images")],
        "[inputs.y]: the model has no input `y`; it has `images`",
    );
    refused(
        None,
        &with("image", images()),
        &[input("images")],
        "[inputs.image]: the model has no input `image`; did you mean `images`?",
    );
    refused(
        None,
        &no_inputs(),
        &[input("scalar")],
        "input `scalar`: tensor `scalar` of ./data.safetensors is a single number without a batch axis",
    );
    refused(None, &no_inputs(), &[], "the model takes no input, so there is nothing to feed");
    refused(
        None,
        &no_inputs(),
        &[shaped("images", &[1, 2, 2])],
        "input `images` takes [?, 1, 2, 2], samples of tensor `images` of ./data.safetensors have shape [4]; set `reshape = [1, 2, 2]` in [inputs.images]",
    );
    refused(
        None,
        &no_inputs(),
        &[shaped("images", &[5])],
        "input `images` takes [?, 5], samples of tensor `images` of ./data.safetensors have shape [4]",
    );
    refused(
        None,
        &with("images", InputSpec { reshape: Some(vec![3]), ..images() }),
        &[input("images")],
        "input `images`: reshape [3] does not fit tensor `images` of ./data.safetensors: its samples have shape [4], 4 elements",
    );
    refused(
        None,
        &with("images", InputSpec { transpose: Some(vec![0, 0]), ..images() }),
        &[input("images")],
        "input `images`: transpose [0, 0] must name each axis of a sample of shape [4] once",
    );
    refused(
        None,
        &with("images", InputSpec { mean: vec![1.0, 2.0], ..images() }),
        &[input("images")],
        "input `images`: `mean` has 2 values, axis 0 of a sample of shape [4] has 4",
    );
    refused(
        None,
        &with("images", InputSpec { mean: vec![1.0, 2.0], channel_axis: Some(-2), ..images() }),
        &[input("images")],
        "input `images`: `channel_axis` -2 is no axis of a sample of shape [4]",
    );
    refused(
        None,
        &with("images", InputSpec { dtype: Some(InputType::I64), ..images() }),
        &[input("images")],
        "2 problems with the data:\n  - input `images`: dtype is i64, the model takes f32\n  - input `images`: the model takes i64, tensor `images` of ./data.safetensors holds f32; store integers",
    );
    refused(
        None,
        &no_inputs(),
        &[input("images"), input("short")],
        "tensor `short` of ./data.safetensors has 1 samples, tensor `images` of ./data.safetensors has 2",
    );
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    for (labels, expected) in [
        (
            "label",
            "labels: no tensor `label`; ./data.safetensors holds `images`, `more`, `scalar`, `short`, `negative`, `labels`; not usable: `odd` (F8_E4M3); did you mean `labels`?",
        ),
        (
            "short",
            "labels: tensor `short` of ./data.safetensors has 1 labels for 2 samples of tensor `images` of ./data.safetensors",
        ),
        (
            "more",
            "labels: tensor `more` of ./data.safetensors has shape [2, 3]; one class index per sample is needed",
        ),
        (
            "negative",
            "labels: tensor `negative` of ./data.safetensors has the negative label -1 at sample 1",
        ),
    ] {
        refused(Some(labels), &no_inputs(), &[input("images")], expected);
    }
}

#[test]
fn labels_may_have_an_axis_of_extent_one() {
    let files = Files::new(&[(
        "d.npz",
        npz(
            &[
                ("x.npy", npy("|u1", "(2,)", &[0, 0])),
                ("y.npy", npy("<i8", "(2, 1)", &le(&[5, 6], i64::to_le_bytes))),
            ],
            CompressionMethod::Stored,
        ),
    )]);
    let spec = DataSpec { labels: Some("y".to_owned()), ..files.spec("d.npz") };
    let dataset = Dataset::open(&spec, &no_inputs(), &[input("image")]).unwrap();
    assert_eq!(dataset.labels(), Some(&[5, 6][..]));
}

#[test]
fn numbers_that_are_not_finite_are_named_with_their_place() {
    let mut values = [0.0f32; 12];
    values[7] = f32::NAN;
    values[11] = f32::INFINITY;
    let files = Files::new(&[
        ("x.npy", npy("<f4", "(3, 2, 2)", &floats(&values))),
        ("big.npy", npy("<f8", "(1, 2)", &le(&[1.0, 1e300], f64::to_le_bytes))),
        ("half.npy", npy("<f4", "(1, 2)", &floats(&[1.0, 70000.0]))),
    ]);
    let message = |file: &str, batch_size, dtype| {
        let model = [of_type("x", dtype)];
        let dataset = Dataset::open(&files.spec(file), &no_inputs(), &model).unwrap();
        let last = dataset.batches(batch_size).last().unwrap();
        files.message(&last.unwrap_err())
    };
    assert_eq!(
        message("x.npy", 3, InputType::F32),
        "tensor `x` of ./x.npy: sample 1 has NaN (and 1 more) at element [1, 1]"
    );
    // The iteration ends with the first batch that is wrong.
    assert_eq!(
        message("x.npy", 1, InputType::F32),
        "tensor `x` of ./x.npy: sample 1 has NaN at element [1, 1]"
    );
    assert_eq!(
        message("big.npy", 1, InputType::F32),
        "tensor `big` of ./big.npy: sample 0 has a value that becomes 1e300, too large for f32 at element [1]"
    );
    assert_eq!(
        message("half.npy", 1, InputType::F16),
        "tensor `half` of ./half.npy: sample 0 has a value that becomes 7e4, too large for f16 at element [1]"
    );
}

#[test]
fn files_that_cannot_be_used_say_why() {
    let good = npy("|u1", "(4,)", &[0; 4]);
    let files = Files::new(&[
        ("text.safetensors", b"hello, world, this is no tensor".to_vec()),
        ("empty.safetensors", vec![]),
        ("header.safetensors", [&40u64.to_le_bytes()[..], b"{}"].concat()),
        ("json.safetensors", [&2u64.to_le_bytes()[..], b"[]"].concat()),
        ("text.npy", b"hello, world".to_vec()),
        ("cut.npy", good[..good.len() - 1].to_vec()),
        ("object.npy", npy("|O", "(4,)", &[])),
        ("huge.npy", npy("<f4", "(4611686018427387904, 8)", &[])),
        ("text.npz", b"hello, world".to_vec()),
        ("cut.npz", npz(&[("x.npy", good[..good.len() - 1].to_vec())], CompressionMethod::Stored)),
        (
            "cut_deflated.npz",
            npz(&[("x.npy", good[..good.len() - 1].to_vec())], CompressionMethod::Deflated),
        ),
        ("image.png", vec![]),
        ("images/1.png", vec![]),
        ("mixed/1.npy", good.clone()),
        ("mixed/2.npy", npy("|u1", "(5,)", &[0; 5])),
    ]);
    fs::create_dir(files.path("nothing")).unwrap();
    for (name, expected) in [
        ("missing.npz", "./missing.npz cannot be opened: no such file"),
        (
            "text.safetensors",
            "./text.safetensors: not a safetensors file: its header would take 8583909746840200552 bytes",
        ),
        (
            "empty.safetensors",
            "./empty.safetensors: not a safetensors file: it has 0 bytes, the header length alone takes 8",
        ),
        (
            "header.safetensors",
            "./header.safetensors: truncated: the header takes 40 bytes, 2 are there",
        ),
        (
            "json.safetensors",
            "./json.safetensors: not a safetensors file: its header is no JSON object (invalid type: sequence, expected a map at line 1 column 0)",
        ),
        ("text.npy", "./text.npy: not a NumPy array: it does not start with `\\x93NUMPY`"),
        ("cut.npy", "./cut.npy: truncated: u8 of shape [4] needs 4 bytes, 3 are there"),
        (
            "object.npy",
            "./object.npy: in the array's header: type `|O` is not supported; convert with `.astype(numpy.float32)`",
        ),
        (
            "huge.npy",
            "./huge.npy: in the array's header: shape [4611686018427387904, 8] has too many elements",
        ),
        (
            "text.npz",
            "./text.npz: not a complete npz file (a zip archive): invalid Zip archive: Invalid zip header",
        ),
        ("cut.npz", "./cut.npz: truncated: array `x` of shape [4] needs 4 bytes, the member has 3"),
        (
            "cut_deflated.npz",
            "./cut_deflated.npz: truncated: array `x` of shape [4] needs 4 bytes, the member has 3",
        ),
        (
            "image.png",
            "./image.png: unknown kind of data file; .safetensors, .npz, .npy and folders of .npy files can be read",
        ),
        ("images", "./images: no .npy file in this folder; it holds files such as ./images/1.png"),
        ("nothing", "./nothing: no .npy file in this folder; it is empty"),
        ("mixed", "./mixed/2.npy: samples are u8 of shape [5], those before u8 of shape [4]"),
    ] {
        let error = Dataset::open(&files.spec(name), &no_inputs(), &[input("x")]).unwrap_err();
        assert_eq!(files.message(&error), expected);
    }
    let several = [("x", "missing.npy"), ("y", "cut.npy")];
    let several = several.map(|(name, file)| (name.to_owned(), files.path(file)));
    let spec = DataSpec::new(DataPath::Several(several.into_iter().collect()));
    let error = Dataset::open(&spec, &no_inputs(), &[input("x")]).unwrap_err();
    assert_eq!(
        files.message(&error),
        "2 data files cannot be used:\n  - ./missing.npy cannot be opened: no such file\n  - ./cut.npy: truncated: u8 of shape [4] needs 4 bytes, 3 are there"
    );
}

#[test]
fn npy_headers() {
    let parse = |text: &str| {
        let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
        bytes.extend((text.len() as u32).to_le_bytes());
        bytes.extend(text.as_bytes());
        npy::read_header(&bytes[..])
    };
    let header = parse("{\"shape\": (2L, 3L), 'fortran_order': False, 'descr': '>f8'}").unwrap();
    assert_eq!((header.shape, header.big_endian, header.bytes), (vec![2, 3], true, 12 + 59));
    assert!(
        parse("{'shape': (), 'fortran_order': True, 'descr': '<f8'}").unwrap().shape.is_empty()
    );
    assert_eq!(
        parse("{'shape': (3,1), 'fortran_order': True, 'descr': '<f8'}").unwrap().shape,
        [3, 1]
    );
    for (text, expected) in [
        (
            "{'shape': (3,2), 'fortran_order': True, 'descr': '<f8'}",
            "the array is stored in Fortran order; save `numpy.ascontiguousarray(x)` instead",
        ),
        ("{'shape': (3,2), 'descr': '<f8'}", "`fortran_order` is missing"),
        ("{'shape': (3,-2), 'descr': '<f8'}", "expected an extent, found `-2), 'descr': '<f8'}`"),
        ("{'shape': (3, 2", "expected `,`, found ``"),
        ("{'shape", "a quote is not closed"),
        ("{shape", "expected a quoted text, found `shape`"),
        ("", "expected `{`, found ``"),
        (
            "{'descr': [('a', '<f4')]",
            "structured types (`descr` is a list) are not supported; save one array per field",
        ),
        ("{'order': 'C'}", "unknown key `order`"),
    ] {
        assert_eq!(
            parse(text).unwrap_err(),
            format!("in the array's header: {expected}"),
            "{text}"
        );
    }
    assert_eq!(
        npy::read_header(&b"\x93NUMPY\x09\x00"[..]).unwrap_err(),
        "version 9.0 of the NumPy format is not supported"
    );
}

#[test]
fn digests_name_the_files_that_were_used() {
    let files = Files::new(&[
        ("x.npy", npy("|u1", "(1,)", &[0])),
        ("y.npy", npy("|u1", "(1,)", &[0])),
        ("unused.npy", npy("|u1", "(1,)", &[0])),
    ]);
    let paths =
        ["y", "x", "unused"].map(|name| (name.to_owned(), files.path(&format!("{name}.npy"))));
    let spec = DataSpec {
        labels: Some("y".to_owned()),
        ..DataSpec::new(DataPath::Several(paths.into_iter().collect()))
    };
    let digests = Dataset::open(&spec, &no_inputs(), &[input("x")]).unwrap().digests().unwrap();
    let names: Vec<_> = digests.iter().map(|digest| digest.path.clone()).collect();
    assert_eq!(names, [files.path("x.npy"), files.path("y.npy")]);
    assert_eq!((digests[0].size_bytes, digests[0].sha256.len()), (129, 64));
    assert_eq!(digests[0].sha256, digests[1].sha256);
}

#[test]
fn damaged_files_never_panic() {
    let data = floats(&[1.0, 2.0, 3.0]);
    let members = [("x.npy", npy("<f4", "(3,)", &data)), ("y.npy", npy("|u1", "(3,)", &[0, 1, 2]))];
    let formats = [
        (
            "d.safetensors",
            safetensors(&[("x", Dtype::F32, &[3], &data), ("y", Dtype::U8, &[3], &[0, 1, 2])]),
        ),
        ("x.npy", members[0].1.clone()),
        ("s.npz", npz(&members, CompressionMethod::Stored)),
        ("d.npz", npz(&members, CompressionMethod::Deflated)),
    ];
    for (name, bytes) in formats {
        let files = Files::new(&[]);
        let path = files.path(name);
        fs::write(&path, &bytes).unwrap();
        let model = [input("x")];
        let labels = (name != "x.npy").then(|| "y".to_owned());
        let spec = DataSpec { labels, ..files.spec(name) };
        assert!(Dataset::open(&spec, &no_inputs(), &model).is_ok(), "{name}");
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let opened = Dataset::open(&spec, &no_inputs(), &model);
            assert!(opened.is_err(), "{name} cut to {cut} bytes");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= [0x01, 0x80, 0xff][at % 3];
            fs::write(&path, &damaged).unwrap();
            if let Ok(dataset) = Dataset::open(&spec, &no_inputs(), &model) {
                dataset.batches(2).for_each(|batch| drop(batch.map_err(|error| error.to_string())));
            }
        }
    }
}
