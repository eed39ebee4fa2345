//! The gradients of what stands before and behind the sums of a convolution, and sums by channel. All arguments are
//! checked.
use super::kernels::{
    CHANNEL_MODULE, CHANNEL_SUMS, CHANNEL_THREADS, ChannelParams, GATE_GRADIENT, GATE_MODULE, GateParams,
    SNAKE_GRADIENT, SNAKE_MODULE, SnakeParams,
};
use crate::binding::{Span, bind};
use crate::contract::stored_as;
use crate::kernel::Constants;
use crate::record::Dispatch;
use crate::windows::{Capacities, MAX_ITERATIONS, windows};
use crate::{Error, Gate, Recorder, Tensor};

fn whole(capacities: Capacities, tensor: &Tensor) -> (Option<Span<'_>>, u32) {
    bind(capacities, Some(tensor), 0, tensor.len() as u64)
}

/// z becomes the gradient of what a gate was given, scale · dy · gate'(z): f32, `[B, 2H, ..]`. dy: `[B, H, ..]`.
pub(crate) fn gate_gradient(
    ops: &mut Recorder<'_, '_>,
    gate: Gate,
    dy: &Tensor,
    z: &Tensor,
    scale: f32,
) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    let ((dy_bound, dy_first), (z_bound, _)) = (whole(capacities, dy), whole(capacities, z));
    let mut constants: Constants = vec![("GATE", gate.code())];
    constants.extend(stored_as("DY_DTYPE", Some(dy)));
    let step = capacities.step().in_groups(CHANNEL_THREADS).work(1).get();
    for (begin, count) in windows(dy.len() as u64, step) {
        ops.dispatch(&Dispatch {
            kernel: &GATE_GRADIENT,
            module: GATE_MODULE,
            constants: &constants,
            buffers: &[dy_bound.clone(), z_bound.clone()],
            params: GateParams {
                begin: begin as u32,
                end: (begin + count) as u32,
                half: dy.shape()[1..].iter().product::<usize>() as u32,
                dy_first,
                scale,
            },
            groups: count.div_ceil(CHANNEL_THREADS),
            work: count,
        })?;
    }
    Ok(())
}

/// d becomes d times the derivative of snake at x: both `[B, channels, ..]`.
pub(crate) fn snake_gradient(ops: &mut Recorder<'_, '_>, x: &Tensor, alpha: &Tensor, d: &Tensor) -> Result<(), Error> {
    let capacities = ops.facts().capacities;
    let ((x_bound, x_first), (alpha_bound, alpha_first)) = (whole(capacities, x), whole(capacities, alpha));
    let (d_bound, d_first) = whole(capacities, d);
    let mut constants: Constants = vec![];
    for (name, tensor) in [("X_DTYPE", x), ("ALPHA_DTYPE", alpha), ("D_DTYPE", d)] {
        constants.extend(stored_as(name, Some(tensor)));
    }
    let step = capacities.step().in_groups(CHANNEL_THREADS).work(1).get();
    for (begin, count) in windows((d.len() as u64).div_ceil(d.dtype().per_word()), step) {
        ops.dispatch(&Dispatch {
            kernel: &SNAKE_GRADIENT,
            module: SNAKE_MODULE,
            constants: &constants,
            buffers: &[x_bound.clone(), alpha_bound.clone(), d_bound.clone()],
            params: SnakeParams {
                begin: begin as u32,
                end: (begin + count) as u32,
                count: d.len() as u32,
                channels: d.shape()[1] as u32,
                positions: d.shape()[2..].iter().product::<usize>() as u32,
                x_first,
                alpha_first,
                d_first,
            },
            groups: count.div_ceil(CHANNEL_THREADS),
            work: count,
        })?;
    }
    Ok(())
}

/// Sums of `d`, `[B, channels, ..]`, over images and positions: f32, one for each channel. With a snake, x and α, each
/// element is first multiplied by the derivative of snake at x by α.
pub(crate) fn channel_sums(
    ops: &mut Recorder<'_, '_>,
    d: &Tensor,
    snake: Option<(&Tensor, &Tensor)>,
    out: &Tensor,
    add: bool,
) -> Result<(), Error> {
    let (x, alpha) = (snake.map(|(x, _)| x), snake.map(|(_, alpha)| alpha));
    let capacities = ops.facts().capacities;
    let [images, channels] = [d.shape()[0], d.shape()[1]].map(|n| n as u64);
    let positions = d.shape()[2..].iter().product::<usize>() as u64;
    let image = channels * positions;
    // What an invocation can loop over, and what a binding holds.
    let of_channel = MAX_ITERATIONS * CHANNEL_THREADS;
    let elements = capacities.step().bound(d.dtype().size().max(x.map_or(0, |x| x.dtype().size()))).work(1).get();
    let at_once = channels.min((elements / positions.max(1)).max(1)).min(capacities.groups).max(1);
    let whole = at_once == channels && positions <= of_channel.min(elements);
    let images_at_once = if whole { (elements / image.max(1)).min(of_channel / positions.max(1)) } else { 1 };
    let part = positions.min(of_channel).min(elements).max(1);
    for (channel, channel_count) in windows(channels, at_once) {
        let (target, out_first) = bind(capacities, Some(out), channel, channel_count);
        // Without elements the sums are zero all the same.
        let pieces = windows(images.max(1), images_at_once.max(1))
            .flat_map(|images| windows(positions.max(1), part).map(move |part| (images, part)));
        for ((first_image, image_count), (first, count)) in pieces {
            let (image_count, count) = (image_count.min(images), count.min(positions));
            let range = match image_count * count {
                0 => 0,
                _ => (image_count - 1) * image + (channel_count - 1) * positions + count,
            };
            let first_element = first_image * image + channel * positions + first;
            let (source, dy_first) = bind(capacities, Some(d), first_element, range);
            let (x_bound, x_first) = bind(capacities, x, first_element, range);
            let (alpha_bound, alpha_first) = bind(capacities, alpha, channel, channel_count);
            let add = add || first_image > 0 || first > 0;
            let mut constants: Constants = vec![("DY_DTYPE", d.dtype().code()), ("ADD", add.into())];
            constants.extend(snake.map(|_| ("SNAKE", 1)));
            constants.extend(stored_as("X_DTYPE", x).into_iter().chain(stored_as("ALPHA_DTYPE", alpha)));
            ops.dispatch(&Dispatch {
                kernel: &CHANNEL_SUMS,
                module: CHANNEL_MODULE,
                constants: &constants,
                buffers: &[source, target.clone(), x_bound, alpha_bound],
                params: ChannelParams {
                    channels: channel_count as u32,
                    positions: count as u32,
                    images: image_count as u32,
                    image: image as u32,
                    channel: positions as u32,
                    dy_first,
                    out_first,
                    x_first,
                    alpha_first,
                },
                groups: channel_count,
                work: image_count * channel_count * count,
            })?;
        }
    }
    Ok(())
}
