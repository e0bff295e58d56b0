// A person with a browser: opens a page and fills in what it asks for until it asks no more.
// Usage: node person.mjs URL LOGIN. Prints the text of the last page.
const [, , start, login] = process.argv;
const cookies = new Map();

async function open(url, form) {
  for (let hops = 0; hops < 20; hops += 1) {
    const answer = await fetch(url, {
      method: form ? 'POST' : 'GET',
      body: form,
      redirect: 'manual',
      headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; ') },
    });
    for (const line of answer.headers.getSetCookie()) {
      const [, name, value] = /^([^=]+)=([^;]*)/.exec(line);
      if (value === '') cookies.delete(name); else cookies.set(name, value);
    }
    const location = answer.headers.get('location');
    if (!location) return { url, text: await answer.text() };
    url = new URL(location, url).href;
    form = undefined;
  }
  throw new Error('too many redirects');
}

let page = await open(start);
for (let steps = 0; steps < 10; steps += 1) {
  const form = /<form[^>]*method="post"[^>]*>[\s\S]*?<\/form>/i.exec(page.text)?.[0];
  if (!form) break;
  const action = /action="([^"]+)"/.exec(form)[1].replaceAll('&amp;', '&');
  const fields = new URLSearchParams();
  for (const [input] of form.matchAll(/<input[^>]*>/g)) {
    const attribute = (name) => new RegExp(`${name}="([^"]*)"`).exec(input)?.[1] ?? '';
    if (attribute('name')) fields.set(attribute('name'), attribute('value'));
  }
  if (fields.has('login')) fields.set('login', login);
  if (fields.has('password')) fields.set('password', 'whatever');
  page = await open(new URL(action, page.url).href, fields);
}
console.log(page.text.replace(/<style[\s\S]*?<\/style>/g, '').replace(/<[^>]*>/g, ' ').replace(/\s+/g, ' '));
