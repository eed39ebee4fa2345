//! Sphere tracing: a ray goes on by the distance that the field has where it is. Rays of a picture go side by side,
//! those that still go on in one batch for the GPU; a finer picture starts where the rays of a coarser one led.
type V3 = [f32; 3];

fn add(a: V3, b: V3, t: f32) -> V3 {
    std::array::from_fn(|i| a[i] + t * b[i])
}

fn dot(a: V3, b: V3) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn unit(a: V3) -> V3 {
    let length = dot(a, a).sqrt().max(1e-12);
    a.map(|x| x / length)
}

/// Half the angle of the picture, its tangent.
const OPENING: f32 = 0.36;
/// The part of the distance that a ray goes on by: a trained field is not exactly one of distances.
const STRIDE: f32 = 0.9;
/// Steps of a ray at most.
const STEPS: usize = 48;
/// For the normal, the difference of two places.
const NEAR: f32 = 0.008;

/// Where the field is looked at from.
pub struct Camera {
    place: V3,
    right: V3,
    up: V3,
    ahead: V3,
    /// The field is shown within [-1, 1]² x [-1, cut].
    most: V3,
}

impl Camera {
    pub fn new(yaw: f32, pitch: f32, distance: f32, cut: f32) -> Camera {
        let ((sy, cy), (sp, cp)) = (yaw.sin_cos(), pitch.sin_cos());
        let (ahead, right, up) = ([-cp * sy, -sp, -cp * cy], [cy, 0.0, -sy], [-sp * sy, cp, -sp * cy]);
        Camera { place: ahead.map(|x| -distance * x), right, up, ahead, most: [1.0, 1.0, cut] }
    }

    /// The direction of a ray through a pixel, x and y in -1 .. 1.
    fn direction(&self, x: f32, y: f32) -> V3 {
        unit(add(add(self.ahead, self.right, OPENING * x), self.up, -OPENING * y))
    }

    /// Where a ray is within the box: from, to, and the axis of the face where it comes in.
    fn inside(&self, direction: V3) -> Option<(f32, f32, usize)> {
        let (mut from, mut to, mut axis) = (1e-3f32, f32::MAX, 0);
        for (i, along) in direction.iter().enumerate() {
            let (a, b) = ((-1.0 - self.place[i]) / along, (self.most[i] - self.place[i]) / along);
            if a.min(b) > from {
                (from, axis) = (a.min(b), i);
            }
            to = to.min(a.max(b));
        }
        (from < to).then_some((from, to, axis))
    }
}

#[derive(Clone, Copy)]
struct Ray {
    direction: V3,
    /// How far it is, and at most goes.
    t: f32,
    to: f32,
    /// The face of the box where it came in.
    axis: usize,
    entry: f32,
    state: State,
    /// The least distance seen on the way, by t, and where: whether rays beside this one hit something.
    least: f32,
    least_at: f32,
    /// The distance where it is.
    sdf: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Going,
    Missed,
    /// The surface.
    Hit,
    /// The box, where it cuts through the inside.
    Cut,
}

/// The rays of a picture.
pub struct Level {
    place: V3,
    light: V3,
    size: usize,
    rays: Vec<Ray>,
    going: Vec<usize>,
    steps: usize,
}

impl Level {
    pub fn new(camera: &Camera, size: usize, coarse: Option<&Level>) -> Level {
        let at = |i: usize| 2.0 * (i as f32 + 0.5) / size as f32 - 1.0;
        let mut rays = Vec::with_capacity(size * size);
        for i in 0..size * size {
            let direction = camera.direction(at(i % size), at(i / size));
            let inside = camera.inside(direction);
            let state = if inside.is_some() { State::Going } else { State::Missed };
            let (entry, to, axis) = inside.unwrap_or((f32::MAX, f32::MAX, 0));
            let mut ray =
                Ray { direction, t: entry, to, axis, entry, state, least: f32::MAX, least_at: f32::MAX, sdf: 0.0 };
            if let (State::Going, Some(coarse)) = (state, coarse) {
                match coarse.start(i % size, i / size, size) {
                    Some(t) => ray.t = t.max(entry),
                    None => ray.state = State::Missed,
                }
            }
            rays.push(ray);
        }
        let going = (0..rays.len()).filter(|&i| rays[i].state == State::Going).collect();
        let light = unit(add(add(camera.ahead.map(|x| -x), camera.right, -0.5), camera.up, 0.7));
        Level { place: camera.place, light, size, rays, going, steps: 0 }
    }

    /// Where the ray of a finer picture may start, by the rays around it; none if all of them passed by far away.
    fn start(&self, x: usize, y: usize, size: usize) -> Option<f32> {
        let (x, y) = (x * self.size / size, y * self.size / size);
        // From one ray to the next, at t = 1.
        let apart = 2.0 * OPENING / self.size as f32;
        let mut start: Option<f32> = None;
        for j in y.saturating_sub(1)..(y + 2).min(self.size) {
            for ray in (x.saturating_sub(1)..(x + 2).min(self.size)).map(|i| &self.rays[j * self.size + i]) {
                let t = match ray.state {
                    State::Hit | State::Cut => ray.t,
                    _ if ray.least < 2.0 * apart => ray.least_at,
                    _ => continue,
                };
                start = Some(start.unwrap_or(f32::MAX).min(t * (1.0 - 3.0 * apart)));
            }
        }
        start
    }

    /// Where the field is wanted next, as (x, y, z).
    pub fn points(&self) -> Vec<f32> {
        self.going.iter().flat_map(|&i| add(self.place, self.rays[i].direction, self.rays[i].t)).collect()
    }

    /// Goes on, with the distances at these points.
    pub fn advance(&mut self, sdf: &[f32]) {
        self.steps += 1;
        // What a pixel covers, at t = 1.
        let pixel = 2.0 * OPENING / self.size as f32;
        for (&i, &sdf) in self.going.iter().zip(sdf) {
            let ray = &mut self.rays[i];
            let close = (0.3 * pixel * ray.t).clamp(0.0005, 0.004);
            ray.sdf = sdf;
            if sdf < ray.least * ray.t {
                (ray.least, ray.least_at) = (sdf / ray.t, ray.t);
            }
            ray.state = if sdf <= 0.0 && ray.t <= ray.entry {
                State::Cut
            } else if sdf.abs() < close {
                State::Hit
            } else if self.steps == STEPS {
                if sdf < 4.0 * close { State::Hit } else { State::Missed }
            } else {
                // Behind the surface it goes back.
                ray.t = (ray.t + STRIDE * sdf).max(ray.entry);
                if ray.t < ray.to && !sdf.is_nan() { State::Going } else { State::Missed }
            };
        }
        self.going.retain(|&i| self.rays[i].state == State::Going);
    }

    fn hits(&self) -> impl Iterator<Item = (usize, &Ray)> {
        self.rays.iter().enumerate().filter(|(_, ray)| ray.state == State::Hit)
    }

    /// Three places near each hit, along the axes: differences to them make the normal.
    pub fn around_hits(&self) -> Vec<f32> {
        let near = |ray: &Ray| {
            let p = add(self.place, ray.direction, ray.t);
            (0..3).flat_map(move |axis| std::array::from_fn::<f32, 3, _>(|i| p[i] + if i == axis { NEAR } else { 0.0 }))
        };
        self.hits().flat_map(|(_, ray)| near(ray)).collect()
    }

    pub fn shade(&self, around: &[f32]) -> Vec<u8> {
        let mut rgba = vec![0; 4 * self.rays.len()];
        let mut put = |i: usize, color: V3| {
            // From light to what a screen wants.
            let encoded = color.map(|x| (255.0 * x.clamp(0.0, 1.0).powf(1.0 / 2.2)).round() as u8);
            rgba[4 * i..][..3].copy_from_slice(&encoded);
            rgba[4 * i + 3] = 255;
        };
        for ((i, ray), near) in self.hits().zip(around.chunks_exact(3)) {
            let normal = unit([near[0] - ray.sdf, near[1] - ray.sdf, near[2] - ray.sdf]);
            put(i, self.lit([0.10, 0.32, 0.62], normal, ray.direction));
        }
        for (i, ray) in self.rays.iter().enumerate().filter(|(_, ray)| ray.state == State::Cut) {
            let mut normal = [0.0; 3];
            normal[ray.axis] = -ray.direction[ray.axis].signum();
            // The deeper, the darker; a line every 0.05, where a picture has pixels enough for lines.
            let depth = (-4.0 * ray.sdf).min(1.0);
            let line = self.size >= 128 && ray.sdf < -0.04 && (-20.0 * ray.sdf).fract() < 0.12;
            let darker = if line { 0.45 } else { 1.0 - 0.5 * depth };
            let color = [0.90, 0.42, 0.12].map(|c| darker * c);
            put(i, self.lit(color, normal, ray.direction));
        }
        rgba
    }

    fn lit(&self, color: V3, normal: V3, direction: V3) -> V3 {
        let diffuse = dot(normal, self.light).max(0.0);
        let sky = 0.5 + 0.5 * normal[1];
        let halfway = unit(add(self.light, direction, -1.0));
        let gloss = 0.25 * dot(normal, halfway).max(0.0).powi(40);
        let edge = (1.0 + dot(normal, direction)).clamp(0.0, 1.0).powi(3);
        color.map(|c| c * (0.9 * diffuse + 0.25 + 0.2 * sky) + gloss + 0.12 * edge)
    }
}
