//go:build !unix

package sqlite

import (
	"errors"
	"os"
)

// lockFile refuses: without a lock, two processes would silently disagree.
func lockFile(string) (*os.File, error) {
	return nil, errors.New("the embedded store needs a Unix-like system")
}
