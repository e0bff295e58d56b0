//! Writes that are handed to the primary of another region and are answered late or never, since a process stands still or
//! a line swallows what is sent: each is done once at most, and never after its client was told that it was not done.

use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::task::JoinHandle;

use crate::harness::{Client, Content, Image, ImageBuilder};
use crate::world::{AP, EU, US, World};

const PATH: &str = "/v2/acme/app/manifests/latest";

/// Three images of one repository, `latest` being the first, in a federation in which all regions answer for it.
async fn three_images(world: &World) -> Vec<Image> {
    let eu = world.regions[EU].client();
    let images: Vec<Image> = (0..3).map(|seed| ImageBuilder::new(seed).layers(1).build()).collect();
    for (number, image) in images.iter().enumerate() {
        eu.push_image("acme/app", &format!("v{number}"), image).await;
    }
    world.put(EU, "latest", &images[0].manifest).await.expect(201);
    for region in [US, AP] {
        world.until_it_answers_alone(region, PATH).await;
    }
    images
}

/// Pushes a tag in a task of its own; gives the status, 0 for none at all.
fn push(client: &Client, manifest: &Content) -> JoinHandle<u16> {
    let request = client.request(Method::PUT, PATH).header("content-type", &manifest.media_type);
    let request = request.body(manifest.bytes.clone()).timeout(Duration::from_secs(120));
    tokio::spawn(async move { request.send().await.map_or(0, |answer| answer.status().as_u16()) })
}

/// A push by way of another region that the primary has recorded at once, while it waits with the answer for a region that
/// it cannot reach.
async fn recorded_but_unanswered(world: &World, manifest: &Content) -> (Instant, JoinHandle<u16>) {
    world.network.isolate(AP);
    let start = Instant::now();
    let pushed = push(world.regions[US].client(), manifest);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!pushed.is_finished(), "it was answered before anything went wrong");
    (start, pushed)
}

/// What `latest` is at the primary, once that is sure of it.
async fn latest(world: &World) -> String {
    let start = Instant::now();
    loop {
        let answer = world.regions[EU].client().get(PATH).await;
        if answer.status == 200 && answer.header("warning").is_empty() {
            return answer.header("docker-content-digest").to_owned();
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{} {}", answer.status, answer.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_push_is_not_recorded_again_when_the_region_that_waits_for_its_answer_stands_still() {
    let world = World::new();
    let images = three_images(&world).await;
    let (start, pushed) = recorded_but_unanswered(&world, &images[1].manifest).await;
    world.regions[US].pause();
    world.network.cut(EU, US);
    world.put(EU, "latest", &images[2].manifest).await.expect(201);

    // Longer than one question about a push may take.
    tokio::time::sleep(Duration::from_secs(53).saturating_sub(start.elapsed())).await;
    world.network.heal();
    world.regions[US].resume();
    let status = pushed.await.expect("a status");
    println!("the push was answered with {status} after {:?}", start.elapsed());
    assert!([201, 503].contains(&status), "{status}");
    for _ in 0..20 {
        assert_eq!(latest(&world).await, images[2].digest(), "what was replaced is back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_push_that_its_client_was_told_has_failed_is_not_done_when_the_primary_goes_on() {
    let world = World::new();
    let images = three_images(&world).await;
    world.regions[EU].pause();
    let start = Instant::now();
    let pushed = push(world.regions[US].client(), &images[1].manifest);
    let status = pushed.await.expect("a status");
    println!("the push was answered with {status} after {:?}", start.elapsed());
    assert_eq!(status, 503);
    // The packets of the push are with the primary's system still.
    world.regions[EU].resume();
    for _ in 0..30 {
        assert_eq!(latest(&world).await, images[0].digest(), "it was done after its client was told that it was not");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.put(US, "latest", &images[2].manifest).await.expect(201);
    assert_eq!(latest(&world).await, images[2].digest());
}

#[tokio::test]
async fn a_push_whose_answer_was_lost_with_the_line_is_asked_about_when_that_is_back() {
    let world = World::new();
    let images = three_images(&world).await;
    let (start, pushed) = recorded_but_unanswered(&world, &images[1].manifest).await;
    world.network.cut(EU, US);
    world.network.cut(US, EU);
    world.put(EU, "latest", &images[2].manifest).await.expect(201);
    // Longer than a connection survives.
    tokio::time::sleep(Duration::from_secs(13).saturating_sub(start.elapsed())).await;
    assert!(!pushed.is_finished(), "nothing could be known of it");
    world.network.heal();
    assert_eq!(pushed.await.expect("a status"), 201);
    println!("the push was acknowledged after {:?}", start.elapsed());
    for _ in 0..10 {
        assert_eq!(latest(&world).await, images[2].digest(), "what was replaced is back");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
