//! The document as a page: one file, no scripts, nothing from elsewhere.

use std::fmt::Write as _;

use serde_json::Value;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}\
h2{margin-top:2.5rem;font:600 1.1rem ui-monospace,monospace;border-top:1px solid #ddd;padding-top:1rem}\
h2 b{display:inline-block;min-width:4.5rem;color:#06c}code{font-family:ui-monospace,monospace;background:#f4f4f4;padding:0 .2rem}\
table{border-collapse:collapse;margin:.5rem 0}td,th{text-align:left;vertical-align:top;padding:.15rem 1rem .15rem 0}\
th{font-weight:600}pre{background:#f4f4f4;padding:.6rem;overflow:auto}nav a{display:block}\
@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}code,pre{background:#262626}h2 b{color:#6af}a{color:#6af}h2{border-color:#333}}";

/// Renders the document.
pub(super) fn render(document: &Value) -> String {
    let info = |name: &str| text(document.pointer(&format!("/info/{name}")));
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0} {1}: API</title><style>{STYLE}</style><h1>{0} {1}</h1><p>{2}</p>\
         <p>For programs: <a href=\"/keppel/v1/openapi.json\">openapi.json</a>.</p><nav>",
        info("title"),
        info("version"),
        info("description"),
    );
    let operations: Vec<(&str, &str, &Value)> = operations(document).collect();
    for (path, method, operation) in &operations {
        let id = text(operation.get("operationId"));
        let _ = write!(page, "<a href=\"#{id}\">{} {}</a>", method.to_uppercase(), escape(path));
    }
    page.push_str("</nav>");
    for (path, method, operation) in &operations {
        one(&mut page, path, method, operation);
    }
    page.push_str("<h1>Documents</h1>");
    let schemas = document.pointer("/components/schemas").and_then(Value::as_object);
    for (name, schema) in schemas.into_iter().flatten() {
        let _ = write!(page, "<h2 id=\"{0}\">{0}</h2>", escape(name));
        fields(&mut page, schema);
    }
    page.push_str("</html>\n");
    page
}

/// Path, method and description of everything that can be asked.
pub(super) fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document.get("paths").and_then(Value::as_object).into_iter().flatten();
    paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

fn one(page: &mut String, path: &str, method: &str, operation: &Value) {
    let _ = write!(
        page,
        "<h2 id=\"{}\"><b>{}</b> {}</h2><p>{}.</p>",
        text(operation.get("operationId")),
        method.to_uppercase(),
        escape(path),
        text(operation.get("summary")),
    );
    let parameters = operation.get("parameters").and_then(Value::as_array).into_iter().flatten();
    let rows: Vec<String> = parameters
        .map(|parameter| {
            let [name, place, what] = ["name", "in", "description"].map(|field| text(parameter.get(field)));
            format!("<tr><td><code>{name}</code><td>{place}<td>{what}")
        })
        .collect();
    if !rows.is_empty() {
        let _ = write!(page, "<table><tr><th>Parameter<th>In<th>What{}</table>", rows.concat());
    }
    let contents = operation.pointer("/requestBody/content").and_then(Value::as_object);
    for (kind, content) in contents.into_iter().flatten() {
        let _ = write!(page, "<p>Body, <code>{}</code>:</p>", escape(kind));
        fields(page, content.get("schema").unwrap_or(&Value::Null));
    }
    page.push_str("<table><tr><th>Status<th>Answer");
    for (status, answer) in operation.get("responses").and_then(Value::as_object).into_iter().flatten() {
        let schema = answer.pointer("/content/application~1json/schema");
        let shape = schema.map(|schema| format!(" <code>{}</code>", kind_of(schema))).unwrap_or_default();
        let _ = write!(page, "<tr><td>{}<td>{}{shape}", escape(status), text(answer.get("description")));
    }
    page.push_str("</table>");
}

/// The fields of an object as a table.
fn fields(page: &mut String, schema: &Value) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        let _ = write!(page, "<p><code>{}</code></p>", kind_of(schema));
        return;
    };
    let required = |name: &str| {
        let names = schema.get("required").and_then(Value::as_array);
        names.is_some_and(|names| names.iter().any(|known| known == name))
    };
    page.push_str("<table><tr><th>Field<th>Type<th>What");
    for (name, field) in properties {
        let mark = if required(name) { " (required)" } else { "" };
        let (kind, what) = (kind_of(field), text(field.get("description")));
        let _ = write!(page, "<tr><td><code>{}</code>{mark}<td>{kind}<td>{what}", escape(name));
    }
    page.push_str("</table>");
}

/// A type in a few words.
fn kind_of(schema: &Value) -> String {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
        return format!("<a href=\"#{0}\">{0}</a>", escape(name));
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<String> = words.iter().map(|word| text(Some(word))).collect();
        return words.join(", ");
    }
    match schema.get("type") {
        Some(Value::String(kind)) if kind == "array" => {
            format!("list of {}", schema.get("items").map(kind_of).unwrap_or_default())
        }
        Some(Value::String(kind)) if kind == "object" => {
            let names = schema.get("properties").and_then(Value::as_object);
            let names: Vec<String> = names.into_iter().flatten().map(|(name, _)| escape(name)).collect();
            if names.is_empty() { "object".to_owned() } else { format!("{{{}}}", names.join(", ")) }
        }
        Some(Value::String(kind)) => escape(kind),
        Some(Value::Array(kinds)) => kinds.iter().map(|kind| text(Some(kind))).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    }
}

fn text(value: Option<&Value>) -> String {
    escape(value.and_then(Value::as_str).unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
