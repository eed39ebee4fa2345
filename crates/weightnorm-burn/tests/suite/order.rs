//! The kernels run in Burn's order: behind the operators that make what they read, before those that read what they
//! write, whoever records them. Nothing is waited for in between, and memory is Burn's own, reused at once.
use std::sync::mpsc;
use std::thread;

use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use crate::data::{assert_close, cpu, numbers, random, wgpu};

/// x of a chain, through operators of Burn before, between and behind layers.
fn chain(seed: u64, device: &Device, rounds: usize) -> Tensor<2> {
    let mut x: Tensor<2> = random(seed, [33, 64], device);
    for round in 0..rounds {
        let seed = seed + 10 * round as u64;
        // v and g are results too, and all of them are dropped as soon as they are read.
        let v = random::<2>(seed + 1, [64, 64], device).mul_scalar(0.5) + random(seed + 2, [64, 64], device);
        let g = relu(random(seed + 3, [64, 1], device)) + 0.5;
        let bias = random::<1>(seed + 4, [64], device).mul_scalar(0.1);
        let y = weightnorm_burn::linear(relu(x.clone() * 2.0 - 0.1), v, g, Some(bias)).expect("fits");
        // Read and written again: x was read by the kernel, and its memory may be written now.
        x = (y + x.mul_scalar(0.25)) * 0.5;
    }
    x.exp().neg()
}

fn expected(seed: u64, rounds: usize) -> Vec<f64> {
    numbers(chain(seed, &cpu(), rounds))
}

#[test]
fn operators_before_between_and_behind() {
    assert_close("chain", &numbers(chain(20, &wgpu(), 12)), &expected(20, 12), 64 * 12);
}

/// Both directions: the gradients of a chain of layers between operators.
#[test]
fn gradients_between_operators() {
    let results = |device: &Device| {
        let device = device.clone().autodiff();
        let x: Tensor<2> = random(30, [33, 64], &device).require_grad();
        let v: Tensor<2> = random(31, [64, 64], &device).require_grad();
        let g: Tensor<2> = random(32, [64, 1], &device).require_grad();
        let once = weightnorm_burn::linear(relu(x.clone() + 0.1), v.clone(), g.clone().exp(), None).expect("fits");
        // The same weight twice: its gradients are added up.
        let twice = weightnorm_burn::linear(once.tanh(), v.clone() * 2.0, g.clone(), None).expect("fits");
        let gradients = (twice.powi_scalar(2) + x.clone()).mean().backward();
        let all = [x.grad(&gradients), v.grad(&gradients), g.grad(&gradients)];
        all.map(|gradient| numbers(gradient.expect("a gradient")))
    };
    for (name, (got, expected)) in ["dx", "dv", "dg"].iter().zip(results(&wgpu()).iter().zip(&results(&cpu()))) {
        assert_close(name, got, expected, 64 * 33);
    }
}

/// v is computed by one thread and read by another's layer, without waiting; its y goes back the same way.
#[test]
fn tensors_of_another_thread() {
    let device = wgpu();
    let (to_layer, inputs) = mpsc::channel::<[Tensor<2>; 2]>();
    let (to_maker, outputs) = mpsc::channel::<Tensor<2>>();
    let layer_device = device.clone();
    let layer = thread::spawn(move || {
        for [x, v] in inputs {
            let g = random(42, [64, 1], &layer_device);
            to_maker.send(weightnorm_burn::linear(x * 0.5, v, g, None).expect("fits")).expect("a reader");
        }
    });
    let maker = |device: &Device, x: Tensor<2>, round: u64| {
        let v = random::<2>(40 + round, [64, 64], device).matmul(random(41, [64, 64], device));
        [x, v]
    };
    let mut x: Tensor<2> = random(43, [33, 64], &device);
    for round in 0..8 {
        to_layer.send(maker(&device, x.clone() + 0.25, round)).expect("a layer");
        x = outputs.recv().expect("y").tanh();
    }
    drop(to_layer);
    layer.join().expect("the thread");

    let host = cpu();
    let mut y: Tensor<2> = random(43, [33, 64], &host);
    for round in 0..8 {
        let [input, v] = maker(&host, y.clone() + 0.25, round);
        y = weightnorm_burn::linear(input * 0.5, v, random(42, [64, 1], &host), None).expect("fits").tanh();
    }
    assert_close("x", &numbers(x), &numbers(y), 64 * 8);
}

/// Four threads at once, each with its own chain.
#[test]
fn threads_beside_each_other() {
    let threads: Vec<_> = (0..4)
        .map(|i| thread::spawn(move || (0..3).map(|_| numbers(chain(50 + 100 * i, &wgpu(), 6))).collect::<Vec<_>>()))
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        let expected = expected(50 + 100 * i as u64, 6);
        for got in thread.join().expect("the thread") {
            assert_close(&format!("thread {i}"), &got, &expected, 64 * 6);
        }
    }
}
