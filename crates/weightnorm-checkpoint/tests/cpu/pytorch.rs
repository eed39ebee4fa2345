//! Files of PyTorch's own: which dictionary is taken, what its tensors are, and what is made of them.
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use weightnorm_checkpoint::{Checkpoint, Device, Error, FileDType, Rules, Spelling, convert, fold, inspect, split};

use crate::files::{Content, Folder, Made, made, vocoder, write};
use crate::torch::{Py, Torch, View, dict, text, zip_of};

fn save(folder: &Folder, name: &str, torch: &Torch, root: &Py) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, torch.file(root)).unwrap();
    path
}

/// All tensors are there, in their order.
fn holds(checkpoint: &Checkpoint, prefix: &str, tensors: &[Made]) {
    let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name.clone()).collect();
    let expected: Vec<_> = tensors.iter().map(|tensor| format!("{prefix}{}", tensor.name)).collect();
    assert_eq!(names, expected);
    for (name, tensor) in names.iter().zip(tensors) {
        assert_eq!(checkpoint.tensor(name).unwrap().shape, tensor.shape, "{name}");
        assert_eq!(checkpoint.read_bytes(name).unwrap(), tensor.bytes, "{name}");
    }
}

/// An optimizer's state, below integers, and all that a program for training keeps.
fn training(torch: &mut Torch, state: Py) -> Py {
    let moment = torch.tensor(&made("exp_avg", Dtype::F32, &[2, 3], 1));
    let step = torch.tensor(&made("step", Dtype::F32, &[], 2));
    let slots = Py::Dict(vec![(Py::Int(0), dict([("exp_avg", moment), ("step", step)]))]);
    let optimizer = dict([("state", slots), ("param_groups", Py::List(vec![dict([("lr", Py::Float(1e-3))])]))]);
    let random = torch.tensor(&made("rng", Dtype::U8, &[16], 3));
    let best = torch.tensor(&made("best", Dtype::F32, &[], 4));
    let arguments = Py::Object("argparse\nNamespace", vec![(text("rate"), Py::Int(22050)), (text("name"), Py::None)]);
    dict([
        ("epoch", Py::Int(100_000)),
        ("hyper_parameters", arguments),
        ("optimizer_states", Py::List(vec![optimizer])),
        ("rng_state", random),
        ("best", best),
        ("state_dict", state),
        ("callbacks", Py::Dict(vec![(Py::Tuple(vec![]), Py::Int(1 << 40))])),
    ])
}

/// A file's value around a state dict.
type Layout<'a> = &'a dyn Fn(&mut Torch, Py) -> Py;

/// The layouts of HiFi-GAN, of a plain state dict, of DAC, and of Lightning: the tensors are those of the model, and
/// what is made of them is what is made of a `.safetensors` file with the same.
#[test]
fn pytorch_layouts_give_the_tensors_of_the_model() {
    let folder = Folder::new("layouts");
    for spelling in [Spelling::Suffixes, Spelling::Parametrizations] {
        let tensors = vocoder(spelling, Dtype::F32);
        let same = folder.join("same.safetensors");
        write(&same, &tensors, &[("format", "pt")]);
        let metadata = || dict([("kwargs", dict([("rates", Py::List(vec![Py::Int(2), Py::Int(8)]))]))]);
        let layouts: [(&str, Layout<'_>); 4] = [
            ("generator", &|_, state| dict([("generator", state)])),
            ("", &|_, state| state),
            ("state_dict", &|_, state| dict([("state_dict", state), ("metadata", metadata())])),
            ("state_dict", &training),
        ];
        for (key, layout) in layouts {
            let mut torch = Torch::default();
            let state = torch.state(&tensors);
            let root = layout(&mut torch, state);
            let path = save(&folder, "model.pt", &torch, &root);
            let checkpoint = Checkpoint::open(&path).unwrap();
            assert_eq!(checkpoint.key(), Some(key));
            holds(&checkpoint, "", &tensors);
            holds(&Checkpoint::open_key(&path, key).unwrap(), "", &tensors);
            assert_eq!(inspect(&checkpoint, &Rules::default(), &mut |_| ()).unwrap().rows.len(), 7);

            let plain = Checkpoint::open(&same).unwrap();
            let other = match spelling {
                Spelling::Suffixes => Spelling::Parametrizations,
                Spelling::Parametrizations => Spelling::Suffixes,
            };
            let (rules, parted) = (Rules::default(), Rules::default().include("table").include("pos_bias_v"));
            let outputs = [&checkpoint, &plain].map(|input| {
                let to = |name: &str| folder.join(name);
                fold(Device::Reference, input, &to("fold"), &rules, &mut |_| ()).unwrap();
                convert(input, &to("convert"), other, &rules, &mut |_| ()).unwrap();
                let parted = parted.clone().exclude("table");
                split(Device::Reference, input, &to("split"), spelling, &parted, &mut |_| ()).unwrap();
                ["fold", "convert", "split"].map(|name| {
                    let content = Content::read(&to(name)).unwrap();
                    (content.tensors, content.metadata)
                })
            });
            assert!(outputs[0] == outputs[1], "{key}");
            assert!(outputs[0][0].0.contains_key("ups.0.weight"));
        }
    }
}

/// A file of before PyTorch 1.6 holds what one of today holds; storages lie in it in the order of their names as texts.
#[test]
fn pytorch_old_form_holds_the_same() {
    let folder = Folder::new("old-torch");
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let mut torch = Torch::default();
    let state = torch.state(&tensors);
    assert!(torch.storages.len() > 10);
    let counts: Vec<i64> = tensors.iter().map(|t| t.shape.iter().product::<usize>() as i64).collect();
    let roots: [(&str, Py); 2] = [("", state.clone()), ("generator", dict([("generator", state)]))];
    for (key, root) in roots {
        let new = save(&folder, "new.pt", &torch, &root);
        let old = folder.join("old.pt");
        std::fs::write(&old, torch.old_file(&root, &counts)).unwrap();
        let checkpoint = Checkpoint::open(&old).unwrap();
        assert_eq!(checkpoint.key(), Some(key));
        holds(&checkpoint, "", &tensors);
        let outputs = [&old, &new].map(|input| {
            let (input, output) = (Checkpoint::open(input).unwrap(), folder.join("folded.safetensors"));
            fold(Device::Reference, &input, &output, &Rules::default(), &mut |_| ()).unwrap();
            std::fs::read(output).unwrap()
        });
        assert!(outputs[0] == outputs[1]);
    }
}

/// Every type, scalars, no elements; views of one storage by offset and strides, in windows of any size; parameters.
#[test]
fn pytorch_views_are_read_in_their_order() {
    let folder = Folder::new("views");
    let mut torch = Torch::default();
    let types = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::U8];
    let mut tensors: Vec<Made> = types.iter().map(|&t| made(&format!("{t:?}"), t, &[3, 5], 7)).collect();
    tensors.extend([made("scalar", Dtype::F32, &[], 8), made("none", Dtype::F32, &[0, 4], 9)]);
    let mut entries: Vec<(String, Py)> = tensors.iter().map(|t| (t.name.clone(), torch.tensor(t))).collect();
    entries.push(("parameter".to_owned(), Py::Parameter(torch.view(&tensors[0]))));
    tensors.push(Made { name: "parameter".to_owned(), ..tensors[0].clone() });

    // One storage of 60 numbers, and what is seen of it: element (i, j, k) is at offset + Σ strides.
    let base = made("base", Dtype::F32, &[60], 10);
    let key = torch.storage(&base.bytes);
    let views: [(&str, i64, &[i64], &[i64]); 8] = [
        ("transposed", 0, &[6, 10], &[1, 6]),
        ("channels_last", 0, &[2, 5, 3, 2], &[30, 1, 10, 5]),
        ("offset", 7, &[4, 3], &[3, 1]),
        ("sliced", 1, &[3, 4, 2], &[20, 5, 2]),
        ("expanded", 3, &[4, 5], &[0, 1]),
        ("one_row", 5, &[1, 7], &[12_345_678_901_234, 1]),
        ("last", 59, &[1], &[1]),
        ("whole", 0, &[60], &[1]),
    ];
    for (name, offset, shape, strides) in views {
        let view = View {
            class: "FloatStorage",
            key: key.clone(),
            count: 60,
            offset,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
        };
        let mut places = vec![offset];
        for (&d, &stride) in shape.iter().zip(strides) {
            places = places.iter().flat_map(|place| (0..d).map(move |i| place + i * stride)).collect();
        }
        let bytes = places.iter().flat_map(|&place| base.bytes[place as usize * 4..][..4].to_vec()).collect();
        let shape = shape.iter().map(|&d| d as usize).collect();
        tensors.push(Made { name: name.to_owned(), dtype: Dtype::F32, shape, bytes });
        entries.push((name.to_owned(), Py::Tensor(view)));
    }
    let path = save(&folder, "views.pt", &torch, &Py::State(entries));
    let checkpoint = Checkpoint::open(&path).unwrap();
    holds(&checkpoint, "", &tensors);
    // The same numbers through the windows of an output.
    let out = folder.join("out.safetensors");
    let rules = Rules::default().include("transposed");
    split(Device::Reference, &checkpoint, &out, Spelling::Suffixes, &rules, &mut |_| ()).unwrap();
    let content = Content::read(&out).unwrap();
    for tensor in &tensors {
        let name = if tensor.name == "transposed" { "transposed_v" } else { &tensor.name };
        assert!(content.tensors[name] == (tensor.dtype, tensor.shape.clone(), tensor.bytes.clone()), "{name}");
    }
}

/// Sizes and places in zip64 fields, as in files of more than 4 GiB.
#[test]
fn pytorch_zip64_fields_are_read() {
    let folder = Folder::new("zip64");
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let mut torch = Torch::default();
    let root = torch.state(&tensors);
    let path = folder.join("large.pt");
    let bytes = zip_of(&torch.entries(&root), true);
    std::fs::write(&path, &bytes).unwrap();
    holds(&Checkpoint::open(&path).unwrap(), "", &tensors);
    // A field that is too short for what it should hold.
    let at = bytes.windows(5).rposition(|at| at == b"Z\x01\0\x18\0").unwrap() + 3;
    std::fs::write(&path, [&bytes[..at], &[15], &bytes[at + 1..]].concat()).unwrap();
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(error.to_string().contains("list of names is damaged"), "{error}");
}

/// A tensor of more windows than one, transposed and cut at places that no window knows.
#[test]
fn pytorch_large_transposed_weights_fold_as_plain_ones() {
    let folder = Folder::new("transposed");
    let (rows, columns) = (613, 1741);
    let (g, v) = (made("l.weight_g", Dtype::F16, &[rows, 1], 1), made("l.weight_v", Dtype::F16, &[rows, columns], 2));
    let at = |i: usize, j: usize| &v.bytes[(i * columns + j) * 2..][..2];
    let turned = (0..columns).flat_map(|j| (0..rows).flat_map(move |i| at(i, j).to_vec())).collect();
    let turned = Made { bytes: turned, ..v.clone() };
    let mut torch = Torch::default();
    let view = View { strides: vec![1, rows as i64], ..torch.view(&turned) };
    let root = dict([("l.weight_g", torch.tensor(&g)), ("l.weight_v", Py::Tensor(view))]);
    let path = save(&folder, "turned.pt", &torch, &root);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.read_bytes("l.weight_v").unwrap() == v.bytes);
    write(&folder.join("same"), &[g, v], &[("format", "pt")]);
    let same = Checkpoint::open(&folder.join("same")).unwrap();
    let rules = Rules::default().window(5000);
    let outputs = [&checkpoint, &same].map(|input| {
        fold(Device::Reference, input, &folder.join("out"), &rules, &mut |_| ()).unwrap();
        std::fs::read(folder.join("out")).unwrap()
    });
    assert!(outputs[0] == outputs[1]);
}

/// Names of one view are one tensor, tied in the metadata; another view of the same storage is a tensor by itself.
#[test]
fn pytorch_shared_tensors_are_tied() {
    let folder = Folder::new("ties");
    let mut torch = Torch::default();
    let (g, v) = (made("g", Dtype::F32, &[4, 1], 1), made("v", Dtype::F32, &[4, 3], 2));
    let (g, v) = (torch.view(&g), torch.view(&v));
    let half = View { shape: vec![2, 3], ..v.clone() };
    let entries = [("a.weight_g", &g), ("a.weight_v", &v), ("b.weight_g", &g), ("b.weight_v", &v), ("half", &half)];
    let root = Py::State(entries.map(|(name, view)| (name.to_owned(), Py::Tensor(view.clone()))).to_vec());
    let checkpoint = Checkpoint::open(&save(&folder, "tied.pt", &torch, &root)).unwrap();
    assert_eq!(checkpoint.tensors().count(), 3);
    let metadata: Vec<_> = checkpoint.metadata().collect();
    assert_eq!(metadata, [("format", "pt"), ("b.weight_g", "a.weight_g"), ("b.weight_v", "a.weight_v")]);
    assert_eq!(checkpoint.read_bytes("b.weight_v").unwrap(), checkpoint.read_bytes("a.weight_v").unwrap());
    let out = folder.join("out.safetensors");
    let report = fold(Device::Reference, &checkpoint, &out, &Rules::default(), &mut |_| ()).unwrap();
    assert_eq!(report.weights.len(), 2);
    let content = Content::read(&out).unwrap();
    assert_eq!(content.names(), ["a.weight", "half"]);
    assert_eq!(content.with_tied().names(), ["a.weight", "b.weight", "half"]);
}

fn refused(path: &Path, key: Option<&str>) -> (String, Vec<String>) {
    let opened = match key {
        Some(key) => Checkpoint::open_key(path, key),
        None => Checkpoint::open(path),
    };
    match opened.map(drop).unwrap_err() {
        Error::Key { path: of, reason, keys } if of == path => (reason, keys),
        other => panic!("{other:?}"),
    }
}

/// Where several dictionaries could be meant, or none, the error names those that there are.
#[test]
fn pytorch_keys_choose_a_dictionary() {
    let folder = Folder::new("keys");
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let mut torch = Torch::default();
    let [one, two, ema] = [0; 3].map(|_| torch.state(&tensors[..3]));
    let both = dict([("generator", one), ("a.b", two)]);
    let root = dict([("model", both), ("ema", Py::List(vec![ema])), ("steps", Py::Int(7)), ("x", text("model"))]);
    let path = save(&folder, "two.pt", &torch, &root);
    let (reason, keys) = refused(&path, None);
    assert_eq!(keys, ["model.generator", "model.a.b"]);
    assert!(reason.contains("model.generator (3 tensors), model.a.b (3 tensors)\n"), "{reason}");
    for key in ["model.generator", "model.a.b", "ema.0"] {
        let checkpoint = Checkpoint::open_key(&path, key).unwrap();
        holds(&checkpoint, "", &tensors[..3]);
        assert_eq!(checkpoint.key(), Some(key));
    }
    let all = Checkpoint::open_key(&path, "model").unwrap();
    assert_eq!(all.tensors().count(), 6);
    assert!(all.tensor("generator.conv_pre.bias").is_some() && all.tensor("a.b.conv_pre.bias").is_some());
    assert_eq!(Checkpoint::open_key(&path, "").unwrap().tensors().count(), 9);
    for key in ["generator", "model.", ".model", "model.a", "ema.1", "steps", "model.generator.conv_pre.bias."] {
        let (reason, keys) = refused(&path, Some(key));
        assert!(key == "steps" || (reason.contains("ema") && keys == ["model", "ema", "steps", "x"]), "{reason}");
    }
    // A tensor by itself, of another type than those that tell a model.
    let path = save(&folder, "one.pt", &torch, &dict([("step", torch_tensor(&tensors[0]))]));
    assert!(refused(&path, None).0.contains("no dictionary of weights"));
    // A whole module, which only its own program can read.
    let root = Py::Object("models\nGenerator", vec![(text("training"), Py::None)]);
    let (reason, keys) = refused(&save(&folder, "module.pt", &torch, &root), None);
    assert!(reason.contains("models.Generator") && reason.contains("state_dict()") && keys.is_empty(), "{reason}");
    // The other kinds of files have none.
    let same = folder.join("same.safetensors");
    write(&same, &tensors, &[]);
    assert!(refused(&same, Some("model")).0.contains("\"model\""));
    let index = folder.join("x.safetensors.index.json");
    std::fs::write(&index, "{}").unwrap();
    assert!(refused(&index, Some("model")).0.contains("index"));
}

/// A scalar.
fn torch_tensor(of: &Made) -> Py {
    let mut torch = Torch::default();
    Py::Tensor(View { shape: vec![], strides: vec![], ..torch.view(of) })
}

/// Alone in its folder, whatever its ending; as the shard of an index it is refused, since a shard keeps its name.
#[test]
fn pytorch_file_in_a_folder_and_as_a_shard() {
    let folder = Folder::new("alone");
    let tensors = vocoder(Spelling::Suffixes, Dtype::F32);
    let mut torch = Torch::default();
    let root = torch.state(&tensors);
    save(&folder, "pytorch_model.bin", &torch, &root);
    holds(&Checkpoint::open(&folder.0).unwrap(), "", &tensors);
    let index = folder.join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"conv_pre.bias": "pytorch_model.bin"}}"#).unwrap();
    let error = Checkpoint::open(&index).unwrap_err();
    assert!(matches!(&error, Error::Foreign { advice, .. } if advice.contains("torch.load")), "{error:?}");
}

/// Files that PyTorch 2.15 wrote, and what its `safetensors` library made of them.
#[test]
fn pytorch_files_of_pytorch_are_read() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch_save");
    for (file, key) in [("views.pt", ""), ("views_protocol_4.pt", ""), ("training.ckpt", "state_dict")] {
        let checkpoint = Checkpoint::open(&data.join(file)).unwrap();
        assert_eq!(checkpoint.key(), Some(key));
        let expected = if key.is_empty() { "views.safetensors" } else { "training.safetensors" };
        let content = Content::read(&data.join(expected)).unwrap();
        assert!(content.tensors.len() > 8);
        let names: Vec<_> =
            checkpoint.tensors().map(|t| &*t.name).chain(checkpoint.metadata().map(|(k, _)| k)).collect();
        assert_eq!(names.len(), content.tensors.len() + 1, "{names:?}");
        for (name, (dtype, shape, bytes)) in &content.tensors {
            let info = checkpoint.tensor(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((info.dtype.name(), &info.shape), (&*format!("{dtype}"), shape), "{name}");
            assert_eq!(&checkpoint.read_bytes(name).unwrap(), bytes, "{name}");
        }
    }
    let checkpoint = Checkpoint::open(&data.join("views.pt")).unwrap();
    assert_eq!(checkpoint.tensor("f8").unwrap().dtype, FileDType::F8E4M3);
}
