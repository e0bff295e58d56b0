// An OpenID Connect provider for the tests: the package oidc-provider with a few people and two programs.
// Usage: node provider.mjs FOLDER_OF_NODE_MODULES. Prints its issuer on one line, then serves until it is ended.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

const modules = process.argv[2];
const { default: Provider } = await import(pathToFileURL(join(modules, 'oidc-provider/lib/index.js')));

const people = {
  alice: { groups: ['developers'] },
  bob: { groups: ['readers', 'operators'] },
  mallory: { groups: [] },
};
const keys = ['one', 'two'].map((kid, index) => {
  const pair = index === 0
    ? generateKeyPairSync('rsa', { modulusLength: 2048 })
    : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...pair.privateKey.export({ format: 'jwk' }), kid, use: 'sig', alg: index === 0 ? 'RS256' : 'ES256' };
});

const server = createServer();
// Longer than a person takes between two requests of one client.
server.keepAliveTimeout = 60_000;
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const issuer = `http://127.0.0.1:${server.address().port}`;
const resource = (algorithm) => ({
  audience: 'keppel-workloads', scope: 'registry', accessTokenFormat: 'jwt', accessTokenTTL: 300,
  jwt: { sign: { alg: algorithm } },
});
const provider = new Provider(issuer, {
  jwks: { keys },
  clients: [
    {
      client_id: 'keppel', application_type: 'native', token_endpoint_auth_method: 'none', response_types: [],
      redirect_uris: [], grant_types: ['urn:ietf:params:oauth:grant-type:device_code'],
    },
    {
      client_id: 'builder', client_secret: 'builder-secret', grant_types: ['client_credentials'], redirect_uris: [],
      response_types: [],
    },
    {
      client_id: 'intruder', client_secret: 'intruder-secret', grant_types: ['client_credentials'], redirect_uris: [],
      response_types: [],
    },
  ],
  claims: { openid: ['sub'], profile: ['preferred_username', 'groups'] },
  conformIdTokenClaims: false,
  scopes: ['openid', 'profile'],
  ttl: { DeviceCode: 600, IdToken: 300, AccessToken: 300, Session: 600, Grant: 600, Interaction: 600, ClientCredentials: 300 },
  cookies: { keys: ['for tests'] },
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: (_, indicator) => resource(indicator.endsWith('/ec') ? 'ES256' : 'RS256'),
    },
  },
  findAccount: (_, id) => people[id] && ({
    accountId: id,
    claims: () => ({ sub: `subject-${id}`, preferred_username: id, ...people[id] }),
  }),
  extraTokenClaims: (_, token) => ({ repository: `acme/${token.clientId}` }),
});
server.on('request', provider.callback());
console.log(issuer);
