// Load every node and every credential class of an installed n8n, and say which cannot be loaded.
//
//   NODE tools/n8n-nodes.cjs FOLDER     FOLDER holds node_modules/n8n; NODE is the box's own Node
//
// For maintainers, after a new lock or a changed roles/n8n/prune.toml: run it on a tree as npm made it and on the
// pruned one. Both must print the same count and no failure. Exit status 1 when anything cannot be loaded.
'use strict';
const fs = require('fs');
const path = require('path');

const root = path.resolve(process.argv[2] || '.');
const failures = [];
let loaded = 0;
process.on('unhandledRejection', () => {}); // some packages begin background work when they are loaded

for (const name of ['n8n-nodes-base', '@n8n/n8n-nodes-langchain']) {
  const folder = path.join(root, 'node_modules', name);
  for (const kind of ['nodes', 'credentials']) {
    const known = JSON.parse(fs.readFileSync(path.join(folder, 'dist', 'known', `${kind}.json`), 'utf8'));
    for (const [type, { sourcePath, className }] of Object.entries(known)) {
      try {
        new (require(path.join(folder, sourcePath))[className])();
        loaded += 1;
      } catch (error) {
        failures.push(`${kind} ${name}.${type}: ${String(error.message || error).split('\n')[0]}`);
      }
    }
  }
}
console.log(`${loaded} loaded, ${failures.length} failed`);
for (const line of failures) console.log(line);
process.exit(failures.length ? 1 : 0);
