//go:build unix

package datadir

import (
	"errors"
	"os"
	"syscall"
)

func take(lock *os.File) error {
	// The kernel frees it however the process ends.
	err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return ErrInUse
	}
	return err
}
