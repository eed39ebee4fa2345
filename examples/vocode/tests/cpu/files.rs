//! Models as files: every spelling, and what does not fit.
use std::borrow::Cow;

use tinyjson::JsonValue;
use vocode::file::File;
use vocode::network::Network;

use crate::common::{MODELS, bytes, folded, model, model_with, renamed};

#[test]
fn vocode_reads_every_spelling() {
    for name in MODELS {
        let network = model(name);
        assert!(network.layers.iter().all(|layer| layer.weight.g.is_some()), "{name}");
        let newer = model_with(name, renamed).unwrap();
        for (layer, newer) in network.layers.iter().zip(&newer.layers) {
            assert_eq!(
                (&layer.weight.v, &layer.weight.g),
                (&newer.weight.v, &newer.weight.g),
                "{name}: {}",
                layer.name
            );
        }
        let plain = model_with(name, folded).unwrap();
        assert!(plain.layers.iter().all(|layer| layer.weight.g.is_none()), "{name}");
        let [halves, singles] = ["F16", "F32"].map(|dtype| {
            model_with(name, |file| {
                let bias = file.tensors.keys().find(|name| name.ends_with("bias")).unwrap().clone();
                let view = file.tensors.get_mut(&bias).unwrap();
                let size = if dtype == "F16" { 2 } else { 4 };
                view.dtype = dtype.to_owned();
                view.bytes = vec![0; size * view.shape[0]].into();
            })
        });
        assert!(halves.is_ok() && singles.is_ok());
    }
}

/// What a change of hifigan_small is refused for.
#[track_caller]
fn refused(name: &str, change: impl FnOnce(&mut File<'_>), parts: &[&str]) {
    let error = model_with(name, change).err().expect("it is refused");
    assert!(parts.iter().all(|part| error.contains(part)), "{error}\nlacks one of {parts:?}");
}

#[test]
fn vocode_names_the_tensor_that_does_not_fit() {
    refused(
        "hifigan_small",
        |file| file.tensors.get_mut("ups.1.weight_v").unwrap().shape = vec![16, 32, 16],
        &["ups.1.weight_v", "[16, 32, 16]", "expected [32, 16, 16]"],
    );
    refused(
        "hifigan_small",
        |file| drop(file.tensors.remove("resblocks.4.convs2.1.bias")),
        &["resblocks.4.convs2.1.bias is missing", "expected [16]"],
    );
    refused(
        "hifigan_small",
        |file| drop(file.tensors.remove("conv_post.weight_g")),
        &["conv_post.weight_g is missing", "expected [1, 1, 1]"],
    );
    refused(
        "hifigan_small",
        |file| file.tensors.retain(|name, _| !name.starts_with("conv_pre.weight")),
        &["conv_pre.weight_v is missing", "expected [64, 80, 7]"],
    );
    refused(
        "hifigan_small",
        |file| {
            let view = file.tensors["conv_pre.weight_v"].clone();
            file.tensors.insert("conv_pre.weight".to_owned(), view);
        },
        &["conv_pre has more than one weight"],
    );
    refused(
        "hifigan_small",
        |file| {
            let view = file.tensors["conv_post.bias"].clone();
            file.tensors.insert("resblocks.12.convs1.0.bias".to_owned(), view);
        },
        &["resblocks.12.convs1.0.bias", "no such tensor"],
    );
    refused(
        "dac_small",
        |file| file.tensors.get_mut("decoder.model.2.block.0.alpha").unwrap().shape = vec![24],
        &["decoder.model.2.block.0.alpha", "[24]", "expected [1, 24, 1]"],
    );
    refused(
        "dac_small",
        |file| file.tensors.get_mut("decoder.model.0.bias").unwrap().dtype = "I32".to_owned(),
        &["decoder.model.0.bias", "I32", "expected F64, F32, F16 or BF16"],
    );
    refused(
        "dac_small",
        |file| {
            let view = file.tensors.get_mut("decoder.model.0.bias").unwrap();
            view.bytes = Cow::Owned(view.bytes[1..].to_vec());
        },
        &["decoder.model.0.bias", "in 191 bytes"],
    );
}

#[test]
fn vocode_names_what_is_wrong_with_the_configuration() {
    let with = |field: &str, value: &str| {
        let (field, value) = (field.to_owned(), value.to_owned());
        move |file: &mut File<'_>| {
            let mut config: JsonValue = file.metadata["config"].parse().unwrap();
            config
                .get_mut::<std::collections::HashMap<String, JsonValue>>()
                .unwrap()
                .insert(field, value.parse().unwrap());
            file.metadata.insert("config".to_owned(), config.stringify().unwrap());
        }
    };
    refused("hifigan_small", |file| file.metadata.clear(), &["config is missing"]);
    for (field, value, part) in [
        ("resblock", "\"3\"", "expected \"1\" or \"2\""),
        ("resblock", "\"2\"", "resblocks.0.convs.0.weight_v is missing"),
        ("upsample_rates", "[8, 8, 2]", "upsample_kernel_sizes has 4 numbers, expected 3"),
        ("upsample_rates", "[8, 8, 2, 0]", "expected a list of whole numbers above 0"),
        ("upsample_rates", "[8, 8, 2, 5]", "a kernel of 4"),
        ("upsample_initial_channel", "15", "too few"),
        ("upsample_initial_channel", "1.5", "expected a whole number"),
        ("resblock_kernel_sizes", "[3, 7, 4]", "expected odd numbers"),
        ("resblock_dilation_sizes", "[[1, 3, 5], [1, 3, 5], []]", "expected 3 lists"),
        ("num_mels", "81", "expected [64, 81, 7]"),
        ("decoder_rates", "[2]", "neither"),
    ] {
        let part = part.replace("a kernel of 4", "an upsampling kernel of 4 is below its rate of 5");
        refused("hifigan_small", with(field, value), &[&part]);
    }
    refused("dac_small", with("decoder_rates", "[8, 4, 2, 2]"), &["decoder.model.4.block.0.alpha is missing"]);
    refused("dac_small", with("decoder_dim", "7"), &["too few"]);
}

#[test]
fn vocode_refuses_files_that_are_cut_off() {
    let whole = bytes("dac_small.safetensors");
    assert!(File::parse(&whole).is_ok());
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        let error = File::parse(&whole[..length]).err().expect("it is refused");
        let expected = if length < 5000 { "safetensors file" } else { "is not all there" };
        assert!(error.contains(expected), "{length}: {error}");
    }
    let mut file = File::parse(&whole).unwrap();
    assert!(Network::of_file(&mut file).is_ok());
}
