# Sourced: an Apache Kafka for tests, from TEST_KAFKA_BROKERS, from Maven
# Central's jars or from the official image, whichever the machine has.
# shellcheck shell=bash
KAFKA_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KAFKA_VERSION=$(sed -n 's|.*<kafka.version>\(.*\)</kafka.version>.*|\1|p' "$KAFKA_DIR/pom.xml")
KAFKA_CACHE=$(cd "$KAFKA_DIR/../.." && pwd)/.cache
KAFKA_JARS=$KAFKA_CACHE/kafka-$KAFKA_VERSION
KAFKA_RUN='' # the node's directory: configuration, data and log
KAFKA_JAVA=() # how Java is started for it
KAFKA_PID='' # the node's process, or
KAFKA_CONTAINER='' # its container
KAFKA_BROKERS='' # its address, for TEST_KAFKA_BROKERS

kafka_java() {
	if [ -n "${JAVA_HOME:-}" ] && [ -x "$JAVA_HOME/bin/java" ]; then
		echo "$JAVA_HOME/bin/java"
	else
		command -v java
	fi
}

# kafka_have_java: is there a Java that runs Kafka 4, that is 17 or newer?
kafka_have_java() {
	local java major
	java=$(kafka_java) || return 1
	major=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
	[ "${major:-0}" -ge 17 ]
}

kafka_have_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

# kafka_source prints where a Kafka would come from: brokers, jars, image;
# none (and false) if this machine can have none.
kafka_source() {
	if [ -n "${TEST_KAFKA_BROKERS:-}" ]; then
		echo brokers
	elif kafka_have_java && { command -v mvn >/dev/null || [ -e "$KAFKA_JARS/.complete" ]; }; then
		echo jars
	elif kafka_have_docker; then
		echo image
	else
		echo none
		return 1
	fi
}

# kafka_prepare downloads what kafka_start will need.
kafka_prepare() {
	case $(kafka_source) in
	jars) kafka_jars ;;
	image) docker image inspect "apache/kafka:$KAFKA_VERSION" >/dev/null 2>&1 ||
		docker pull --quiet "apache/kafka:$KAFKA_VERSION" >&2 ;;
	esac
}

kafka_jars() {
	local stamp=$KAFKA_JARS/.complete fresh try
	if [ -e "$stamp" ] && [ "$stamp" -nt "$KAFKA_DIR/pom.xml" ]; then
		return
	fi
	echo "Kafka: downloading the jars of $KAFKA_VERSION (once, 54 MB)" >&2
	mkdir -p "$KAFKA_CACHE"
	fresh=$(mktemp -d "$KAFKA_CACHE/kafka.XXXXXX")
	for try in 1 2 3; do
		if mvn -q -B -l "$KAFKA_CACHE/maven.log" -f "$KAFKA_DIR/pom.xml" \
			dependency:copy-dependencies -DoutputDirectory="$fresh" >/dev/null; then
			touch "$fresh/.complete"
			rm -rf "$KAFKA_JARS"
			mv "$fresh" "$KAFKA_JARS"
			return
		fi
		echo "Kafka: download failed (attempt $try of 3)" >&2
		tail -n 15 "$KAFKA_CACHE/maven.log" >&2 || true
		sleep 5
	done
	rm -rf "$fresh"
	return 1
}

# kafka_start gives KAFKA_BROKERS a value once the broker answers. Whoever calls
# it calls kafka_stop in the end.
kafka_start() {
	local source try
	source=$(kafka_source) || {
		echo "Kafka: needs TEST_KAFKA_BROKERS, a JDK of 17 or newer with Maven, or a Docker engine" >&2
		return 1
	}
	if [ "$source" = brokers ]; then
		KAFKA_BROKERS=$TEST_KAFKA_BROKERS
		kafka_await
		return
	fi
	kafka_prepare || return 1
	# A port that was free may be taken before the broker has it: then again.
	for try in 1 2 3; do
		if "kafka_start_$source" && kafka_await; then
			return
		fi
		echo "Kafka: did not start (attempt $try of 3):" >&2
		tail -n 15 "$KAFKA_RUN/kafka.log" >&2 || true
		kafka_stop
	done
	return 1
}

kafka_ports() { GO111MODULE=off go run "$KAFKA_DIR/cmd/freeports/main.go" 2; }

kafka_start_jars() {
	local port controller
	KAFKA_RUN=$(mktemp -d "${TMPDIR:-/tmp}/test-kafka.XXXXXX")
	read -r -d '' port controller < <(kafka_ports) || true
	[ -n "$controller" ] || return 1
	KAFKA_BROKERS=127.0.0.1:$port
	{
		cat "$KAFKA_DIR/server.properties"
		echo "listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller"
		echo "controller.quorum.bootstrap.servers=127.0.0.1:$controller"
		echo "log.dirs=$KAFKA_RUN/data"
	} >"$KAFKA_RUN/server.properties"
	KAFKA_JAVA=("$(kafka_java)" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 "-Xmx${TEST_KAFKA_HEAP:-256m}"
		"-Dlog4j2.configurationFile=$KAFKA_DIR/log4j2.yaml" -cp "$KAFKA_JARS/*")
	"${KAFKA_JAVA[@]}" kafka.tools.StorageTool format --standalone -t MkU3OEVBNTcwNTJENDM2Qk \
		-c "$KAFKA_RUN/server.properties" >"$KAFKA_RUN/kafka.log" 2>&1 || return 1
	kafka_launch
}

# kafka_launch starts the node of kafka_start_jars, for the first time or after
# kafka_kill.
kafka_launch() {
	local detach=()
	# In a session of its own, so that Ctrl-C reaches the tests first.
	if command -v setsid >/dev/null; then detach=(setsid); fi
	${detach[@]+"${detach[@]}"} "${KAFKA_JAVA[@]}" kafka.Kafka "$KAFKA_RUN/server.properties" >>"$KAFKA_RUN/kafka.log" 2>&1 &
	KAFKA_PID=$!
}

# kafka_kill ends the node without a word, and keeps its data.
kafka_kill() {
	kill -KILL "$KAFKA_PID"
	wait "$KAFKA_PID" 2>/dev/null || true
	KAFKA_PID=
}

kafka_start_image() {
	local port name value env=()
	KAFKA_RUN=$(mktemp -d "${TMPDIR:-/tmp}/test-kafka.XXXXXX")
	read -r port < <(kafka_ports) || return 1
	KAFKA_BROKERS=127.0.0.1:$port
	while IFS='=' read -r name value; do
		env+=(-e "KAFKA_$(tr '.a-z' '_A-Z' <<<"$name")=$value")
	done < <(grep '^[a-z]' "$KAFKA_DIR/server.properties")
	KAFKA_CONTAINER=$(docker run --detach --rm --publish "127.0.0.1:$port:$port" "${env[@]}" \
		-e "KAFKA_LISTENERS=PLAINTEXT://:$port,CONTROLLER://:9093" \
		-e "KAFKA_ADVERTISED_LISTENERS=PLAINTEXT://127.0.0.1:$port" \
		-e "KAFKA_CONTROLLER_QUORUM_VOTERS=1@localhost:9093" \
		-e "KAFKA_HEAP_OPTS=-Xmx${TEST_KAFKA_HEAP:-256m}" \
		"apache/kafka:$KAFKA_VERSION" 2>"$KAFKA_RUN/kafka.log") || return 1
	docker logs --follow "$KAFKA_CONTAINER" >>"$KAFKA_RUN/kafka.log" 2>&1 &
}

# kafka_await waits until the broker answers an ApiVersions request: it does so
# only when it is ready for all others.
kafka_await() {
	local deadline=$((SECONDS + 90))
	until kafka_answers "${KAFKA_BROKERS%%,*}"; do
		if [ -n "$KAFKA_PID" ] && ! kill -0 "$KAFKA_PID" 2>/dev/null; then
			return 1
		fi
		if [ "$SECONDS" -ge "$deadline" ]; then
			echo "Kafka: no answer from $KAFKA_BROKERS" >&2
			return 1
		fi
		sleep 0.2
	done
}

# kafka_answers HOST:PORT, by hand: size 10, key 18 (ApiVersions), version 0,
# correlation id 1, no client id. A broker with TLS does not answer this: it
# has to be ready before.
kafka_answers() {
	local answer
	# shellcheck disable=SC2016 # the inner shell expands it
	answer=$(timeout 3 bash -c 'exec 3<>"/dev/tcp/$0/$1" &&
		printf "\0\0\0\012\0\022\0\0\0\0\0\1\377\377" >&3 && head -c 8 <&3 | od -An -tx1' \
		"${1%:*}" "${1##*:}" 2>/dev/null | tr -d ' \n')
	[ "${answer:8}" = 00000001 ]
}

# kafka_stop ends what kafka_start began; KAFKA_LOG, if set, names the file that
# keeps the log. May be called twice, and in a trap.
kafka_stop() {
	if [ -n "$KAFKA_PID" ]; then
		# Its data goes away: there is nothing to stop gently for.
		kill -KILL "$KAFKA_PID" 2>/dev/null || true
		wait "$KAFKA_PID" 2>/dev/null || true
		KAFKA_PID=
	fi
	if [ -n "$KAFKA_CONTAINER" ]; then
		docker rm --force "$KAFKA_CONTAINER" >/dev/null 2>&1 || true
		KAFKA_CONTAINER=
	fi
	if [ -n "$KAFKA_RUN" ]; then
		[ -z "${KAFKA_LOG:-}" ] || cp "$KAFKA_RUN/kafka.log" "$KAFKA_LOG" 2>/dev/null || true
		rm -rf "$KAFKA_RUN"
		KAFKA_RUN=
	fi
}
