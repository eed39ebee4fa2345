//! A trained network: the DeepSDF decoder of tests/data, whose README describes the file and the network.
use std::path::Path;

use weightnorm::{Activation, Axis, Eps, cpu};

use crate::common::{File, Tensor, compare};

/// w of layer i: from g and v, or as it stands in a layer without weight norm.
fn weight(file: &File, i: usize) -> Result<(Vec<f64>, &[usize]), String> {
    if let Some(Tensor { data, shape, .. }) = file.tensors.get(&format!("model.lin{i}.weight")) {
        return Ok((data.clone(), shape));
    }
    let g = file.tensor(&format!("model.lin{i}.parametrizations.weight.original0"))?;
    let v = file.tensor(&format!("model.lin{i}.parametrizations.weight.original1"))?;
    let w = cpu::normalize(&v.data, &v.shape, Some(&g.data), Axis::Kept(0), Eps::None).map_err(|e| file.fail(e))?;
    Ok((w, &v.shape))
}

fn decode(file: &File) -> Result<Vec<f64>, String> {
    let latent_in: Vec<usize> = serde_json::from_str(file.meta("latent_in")?).map_err(|e| file.fail(e))?;
    let layers = (0..).take_while(|i| file.tensors.contains_key(&format!("model.lin{i}.bias"))).count();
    let (codes, points) = (file.tensor("latent_codes")?, file.tensor("points")?);
    let latent = &codes.data[..codes.shape[1]];

    let input: Vec<Vec<f64>> =
        points.data.chunks_exact(points.shape[1]).map(|point| [latent, point].concat()).collect();
    let mut h = input.clone();
    for i in 0..layers {
        if latent_in.contains(&i) {
            h.iter_mut().zip(&input).for_each(|(h, input)| h.extend(input));
        }
        let (w, shape) = weight(file, i)?;
        let bias = &file.tensor(&format!("model.lin{i}.bias"))?.data;
        let activation = match (i + 1 == layers, file.meta("use_tanh")? == "True") {
            (false, _) => Activation::Relu,
            (true, true) => Activation::Tanh,
            (true, false) => Activation::None,
        };
        let y = cpu::linear(&h.concat(), &[h.len(), shape[1]], &w, shape, Some(bias), activation);
        h = y.map_err(|e| file.fail(e))?.chunks_exact(shape[0]).map(<[f64]>::to_vec).collect();
    }
    Ok(h.concat())
}

/// Both sides compute in f64 from end to end. One layer of 128 terms of size 1 is off by up to 128 · 2⁻⁵³ ≈ 1.4e-14,
/// seven of them by 1e-13.
#[test]
fn linear_decodes_the_trained_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/round_cross.safetensors");
    let mut file = File::load(&path).unwrap();
    let expected = file.tensor("expected_sdf").unwrap().data.clone();
    assert_eq!(expected.len(), 2048);
    assert!(expected.iter().any(|&sdf| sdf < 0.0) && expected.iter().any(|&sdf| sdf > 0.0));
    compare(&decode(&file).unwrap(), &expected, None, |_| 1e-13).unwrap();

    // The negative control: one gain of one layer, changed in its eighth digit.
    let gains = file.tensors.get_mut("model.lin6.parametrizations.weight.original0").unwrap();
    gains.data[0] *= 1.0 + 1e-8;
    compare(&decode(&file).unwrap(), &expected, None, |_| 1e-13).unwrap_err();
}
