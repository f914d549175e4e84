// A service of a graph, written in Node. It says on standard output where it listens; port 0 is any that is free.
// node service.js 127.0.0.1:50052
import { Server, ServerCredentials, status } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { definition, Echo } from "./echo.js";
import { elementsOf } from "./tensor.js";

const NAME = "services.echo.v1.Echo";

const handlers = {
  Say: (call, reply) => reply(null, { ...call.request, blob: Buffer.from("made by Node") }),
  Reflect: (call, reply) => reply(null, call.request),
  Total: (call, reply) => {
    try {
      const sum = elementsOf(call.request.pixels).reduce((sum, each) => sum + each, 0);
      reply(null, { number: Math.trunc(sum) });
    } catch (error) {
      reply({ code: status.INVALID_ARGUMENT, details: error.message });
    }
  },
  Repeat: (call) => {
    for (let number = 0; number < call.request.times; number++) {
      call.write({ ...call.request, number });
    }
    call.end();
  },
};

const server = new Server({ "grpc.max_receive_message_length": 64 * 1024 * 1024 });
server.addService(Echo.service, handlers);

// By health a caller knows when it is ready; by reflection, that it serves what the caller's .proto says.
const health = new HealthImplementation({ "": "SERVING", [NAME]: "SERVING" });
health.addToServer(server);
new ReflectionService(definition).addToServer(server);

server.bindAsync(process.argv[2], ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`listening on port ${port}`);
});

// Callers learn that they should go elsewhere, and calls under way end; a caller's watch of the health does not, hence the limit.
process.on("SIGTERM", () => {
  health.setStatus(NAME, "NOT_SERVING");
  server.tryShutdown(() => process.exit());
  setTimeout(() => process.exit(), 5000);
});
