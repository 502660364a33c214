//! Tensors, labels and files that do not fit.

use super::*;

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
