// Package apikey makes and reads API keys: "mqi_<public id>_<secret><checksum>".
//
// The public id finds the key and may be shown; the secret is random, more than
// 190 bits, and only its SHA-256 is kept. That is enough for a random secret: a
// slow hash is for what people think of. The checksum tells a mistyped or cut key
// without asking the store, and lets scanners recognise leaked ones.
package apikey
